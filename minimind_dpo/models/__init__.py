"""Models: recognise, load, run and export MiniMind checkpoints and any transformers decoder.

Importing this package registers the `v_learn` architecture with transformers.
"""

from minimind_dpo.models import v_learn as v_learn
from minimind_dpo.models.dialects import CheckpointError, Dialect
from minimind_dpo.models.load import LoadedModel, load_model

__all__ = ["CheckpointError", "Dialect", "LoadedModel", "load_model"]
