"""What a file holds, as bytes and lines: unpacked piece by piece, in memory that is bounded."""

from __future__ import annotations

import codecs
import gzip
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minimind_dpo.data.read.sources import DataFile

_CHUNK: Final = 1 << 20
_ZSTD_PIECE: Final = 1 << 11
"""Bytes unpacked at once: four of them can stand for a block of 128 KiB, so these for 64 MiB."""

LONGEST: Final = 1 << 26
"""Most bytes of a line and characters of a JSON value: more than any pair, to bound memory."""

_SAMPLE: Final = 1 << 16
_MOST: Final = 0.9
"""Share of a text's characters beyond ASCII that are in GB2312 if the text is GBK."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a file, or the problem that stands in its place.

    Attributes:
        source: `dpo.jsonl:17`, counted from 1 (rows of parquet and hub data sets likewise).
        value: What was read; None where there is a problem.
        problem: Why it could not be read; empty where it could.
        size: Bytes it took in the file, for progress; 0 where unknown.
    """

    source: str
    value: Any = None
    problem: str = ""
    size: int = 0


class TooLongError(ValueError):
    """A line of more than `LONGEST` bytes."""


def read_chunks(file: DataFile) -> Iterator[bytes]:
    """The bytes of a file, unpacked; an OSError, EOFError or zlib.error where it is damaged."""
    if file.compression == "zst":
        yield from _zstd_chunks(file.path)
        return
    opener = gzip.open if file.compression == "gz" else open
    with opener(file.path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _zstd_chunks(path: str) -> Iterator[bytes]:
    """Unpack frame by frame: the library's own reader takes a cut-off file for a short one."""
    import zstandard

    frame = None
    with open(path, "rb") as stream:
        while piece := stream.read(_ZSTD_PIECE):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    data = frame.decompress(piece)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                yield from (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("compressed data ended before the end of a frame")


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut at newlines only; str.splitlines would also cut at U+2028 inside a JSON string.

    Raises:
        TooLongError: A line is longer than `LONGEST`.
    """
    pending: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = rest[-1:]
        elif sum(map(len, pending)) > LONGEST:
            raise TooLongError(f"has a line of more than {LONGEST:,} bytes; no pair is that long")
    yield b"".join(pending)


def encoding_problem(file: DataFile) -> str:
    """Why the text of a file is in another encoding than UTF-8; empty where it seems not to be."""
    head = b""
    for chunk in read_chunks(file):
        head += chunk[:_SAMPLE]
        if len(head) >= _SAMPLE:
            break
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "is UTF-16 text; save the file as UTF-8"
    if _decodes(head, "utf-8") or not _is_gbk(head):
        return ""
    path = Path(file.path)
    source, target = map(shlex.quote, (path.name, f"{path.stem}.utf8{path.suffix}"))
    how = f"iconv -f GB18030 -t UTF-8 {source} > {target}"
    unpack = "unpack it and " if file.compression else ""
    return f"looks like GBK; {unpack}convert it to UTF-8 ({how})"


def not_utf8(text: str) -> str:
    """Which byte of text that was decoded with `surrogateescape` is not UTF-8; empty for none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = len(text[: error.start].encode()) + 1
        return f"is not valid UTF-8 (byte 0x{ord(text[error.start]) & 0xFF:02x} at {place})"
    return ""


def _decodes(data: bytes, encoding: str) -> bool:
    """Whether bytes, whose end may be cut anywhere, are text of an encoding."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def _is_gbk(data: bytes) -> bool:
    if not _decodes(data, "gb18030"):
        return False
    text = codecs.getincrementaldecoder("gb18030")().decode(data)
    beyond = [character for character in text if not character.isascii()]
    common = sum(bool(character.encode("gb2312", "ignore")) for character in beyond)
    return common >= _MOST * len(beyond)
