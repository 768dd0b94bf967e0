"""The one error of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CheckpointError(ValueError):
    """A model or tokenizer that cannot be used: what is wrong, where, why, and what to do."""


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Put the name of the file before what is said of it inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error
