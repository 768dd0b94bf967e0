"""Models: recognise, load, run and export MiniMind checkpoints and any transformers decoder.

Importing this package registers the `v_learn` architecture with transformers.
"""

from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.minimind import v_learn as v_learn
from minimind_dpo.models.minimind.recognise import CheckpointError, Dialect

__all__ = ["CheckpointError", "Dialect", "LoadedModel", "load_model"]
