"""minimind_dpo: Direct Preference Optimization for MiniMind and other small language models.

The names below are imported when they are first asked for: `minimind_dpo.config` and `--help`
must answer without waiting seconds for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from minimind_dpo.data.datamodule import PreferenceDataModule
    from minimind_dpo.models.load import load_model
    from minimind_dpo.objective.preference_loss import preference_loss
    from minimind_dpo.training.module import DPOModule

__version__ = "0.1.0"

__all__ = ["DPOModule", "PreferenceDataModule", "__version__", "load_model", "preference_loss"]

_HOMES: Final = {
    "DPOModule": "minimind_dpo.training.module",
    "PreferenceDataModule": "minimind_dpo.data.datamodule",
    "load_model": "minimind_dpo.models.load",
    "preference_loss": "minimind_dpo.objective.preference_loss",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
