"""Models: recognise, load, run and export MiniMind checkpoints and any transformers decoder.

The names below are imported when they are first asked for, so that the package costs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from minimind_dpo.models.errors import CheckpointError
    from minimind_dpo.models.load import LoadedModel, load_model
    from minimind_dpo.models.minimind.recognise import Dialect

__all__ = ["CheckpointError", "Dialect", "LoadedModel", "load_model"]

_HOMES: Final = {
    "CheckpointError": "minimind_dpo.models.errors",
    "Dialect": "minimind_dpo.models.minimind.recognise",
    "LoadedModel": "minimind_dpo.models.load",
    "load_model": "minimind_dpo.models.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
