"""The one error of this package."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A model or tokenizer that cannot be used: what is wrong, where, why, and what to do."""
