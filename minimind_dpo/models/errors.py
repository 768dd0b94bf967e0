"""The one error of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from minimind_dpo.options.problem import printable

_LONGEST = 300


class CheckpointError(ValueError):
    """A model or tokenizer that cannot be used: what is wrong, where, why, and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(printable(text).replace("\n", r"\n"))


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Put the name of the file before what is said of it inside."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def reason(error: BaseException, advice: str = "") -> str:
    """What made a library fail, in one line, and what to do; not what it advises about code."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "it comes with Python code of its own, which is not run. If you trust it, allow that "
            "with model.trust_remote_code=true"
        )
    if "weights_only" in text:
        return (
            "its weights hold Python objects, which are not loaded because that can run code. Use "
            "safetensors, or a file of plain weights"
        )
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...") + advice
