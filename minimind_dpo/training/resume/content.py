"""A digest of what a checkpoint holds, which tells an altered one from the one that was saved."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import torch

HEADER: Final = "minimind_dpo"
"""Key under which a checkpoint says what it belongs to and where it stands."""
CONTENT: Final = "content"
"""Entry of the header for the digest of everything else."""


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
