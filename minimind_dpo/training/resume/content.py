"""What a checkpoint says of itself: whose it is, where its run stood, and a digest of the rest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final, get_origin, get_type_hints

import torch

HEADER: Final = "minimind_dpo"
"""Key under which a checkpoint says what it belongs to and where it stands."""
CONTENT: Final = "content"
"""Entry of the header for the digest of everything else."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a state belongs to, and where its run stood.

    Attributes:
        step: Optimizer steps that were done.
        epochs: Whole epochs that were done.
        shape: How a step was spread; see `position.step_shape`.
        belongs: What it was made with; see `position.differences`.
        rows: Rows of the run's `metrics.csv` that were logged before; -1 where it has none.
        start_metrics: Validation before training.
    """

    step: int
    epochs: int
    shape: dict[str, int]
    belongs: dict[str, Any]
    rows: int
    start_metrics: dict[str, float]

    @classmethod
    def of(cls, checkpoint: Any) -> Header:
        """The header of a loaded checkpoint.

        Raises:
            KeyError, TypeError: It has none, or one with other entries.
        """
        entries = checkpoint[HEADER]
        kinds = get_type_hints(cls)
        header = cls(**{name: entries[name] for name in kinds})
        for name, kind in kinds.items():
            if type(entries[name]) is not (get_origin(kind) or kind):
                raise TypeError(f"its entry {name!r} is {type(entries[name]).__name__}")
        return header


def content_digest(checkpoint: dict[str, Any]) -> str:
    """SHA-256 of all entries; of tensors their types and shapes, as the file has checksums of them.

    Args:
        checkpoint: Plain values, tensors, and containers of them; its header without this entry.
    """
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)};".encode())
        elif isinstance(value, dict):
            add([*value.items()])
        elif isinstance(value, list | tuple):
            digest.update(f"{len(value)}:".encode())
            for item in value:
                add(item)
        else:
            digest.update(f"{value!r};".encode())

    add(checkpoint)
    return digest.hexdigest()
