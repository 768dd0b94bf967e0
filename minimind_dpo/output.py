"""Output whose end costs no run: its reader may go, its disk may fill, its letters may be few."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final

_STREAMS: Final = {"stdin": "r", "stdout": "w", "stderr": "w"}


def lead_nowhere(descriptor: int) -> None:
    """Let whatever is written to a descriptor from now on be dropped."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def keep_output(*names: str) -> None:
    """Let writing to standard output and error, or to those named, never fail in this process.

    From the first write that does, what is written goes nowhere, and standard error tells of it.
    Characters that a terminal's encoding lacks are written as `\\u2022`. Streams that were closed
    before the program began are there, and empty.
    """
    for name, mode in _STREAMS.items():
        stream, wanted = getattr(sys, name), name in (names or ("stdout", "stderr"))
        if stream is None:
            # NOTE: open to the end: whatever got its number later would be written to.
            nowhere = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and not isinstance(stream.buffer, io.BytesIO):
            setattr(sys, name, _kept(stream) if wanted else stream)


def flush_output() -> None:
    """Write what is left of standard output.

    Raises:
        OSError: It cannot be written; it is dropped, so that Python does not try again at its end.
    """
    try:
        sys.stdout.flush()
    except OSError:
        lead_nowhere(sys.stdout.fileno())
        raise


def _kept(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    stream.flush()
    raw = _KeptFile(stream.fileno(), "w", closefd=False)
    lines = stream.line_buffering
    kept = io.TextIOWrapper(
        io.BufferedWriter(raw), stream.encoding, "backslashreplace", line_buffering=lines
    )
    kept.mode = "w"  # type: ignore[misc]  # as Python's own have
    return kept


class _KeptFile(io.FileIO):
    """A file that takes every write."""

    def write(self, data: Any) -> int:
        """Write, or from the first failure on, do nothing."""
        try:
            return super().write(data)
        except OSError as error:
            # NOTE: not a flag: what C code and other processes write to it would fail still.
            lead_nowhere(self.fileno())
            if self.fileno() != 2:
                message = f"Standard output ends here ({error.strerror}); the run goes on."
                print(message, file=sys.stderr)
            return memoryview(data).nbytes
