"""Models: recognise, load, run and export MiniMind checkpoints and any transformers decoder.

`load_model` is imported when it is first asked for: the options of this package are read without
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minimind_dpo.models.load import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from minimind_dpo.models.load import load_model

    return load_model
