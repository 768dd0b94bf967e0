"""From a source to its records, each with its place; what cannot be read is a record as well.

Bytes must be UTF-8; a byte order mark, CRLF and blank lines are fine. A line that cannot be read
becomes a record with a problem, and reading goes on; where the rest of a file is lost (damaged
compression, a broken list) the problem says so.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind_dpo.data.read.problems import DataError, Problem
from minimind_dpo.data.read.sources import HUBS, DataFile
from minimind_dpo.disk import sha256

_CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\r\n]*")


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


def content_digest(file: DataFile) -> str:
    """SHA-256 of what a file holds: its bytes, or the rows of a hub data set."""
    if file.kind in HUBS:
        digest = hashlib.sha256()
        for record in iterate_records(file):
            row = json.dumps(record.value, sort_keys=True, default=str) + record.problem
            digest.update(row.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()
    try:
        return sha256(Path(file.path))
    except OSError as error:
        raise DataError([Problem(file.name, f"cannot be read: {error.strerror}")]) from error


def iterate_records(file: DataFile) -> Iterator[Record]:
    """Read a file's records one by one. Problems come as records; none is raised."""
    readers = {"jsonl": _read_lines, "json": _read_json, "parquet": _read_parquet}
    reader = readers.get(file.kind, _read_hub)
    line = 0
    try:
        for record in reader(file):
            line = int(record.source)
            yield Record(f"{file.name}:{line}", record.value, record.problem, record.size)
    except UnicodeDecodeError:
        yield Record(f"{file.name}:{line + 1}", problem="is not valid UTF-8")
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read on: {error}; is the file damaged, or cut off?"
        yield Record(f"{file.name}:{line + 1}", problem=reason)


def _chunks(file: DataFile) -> Iterator[bytes]:
    if file.compression == "zst":
        yield from _zstd_chunks(file.path)
        return
    opener = gzip.open if file.compression == "gz" else open
    with opener(file.path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _zstd_chunks(path: str) -> Iterator[bytes]:
    """Decompress frame by frame: the library's own reader takes a cut-off file for a short one."""
    import zstandard

    frame = None
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise OSError(str(error)) from error
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("compressed data ended before the end of a frame")


def _read_lines(file: DataFile) -> Iterator[Record]:
    yield from _parse_lines(_split_lines(_chunks(file)), counted=not file.compression)


def _split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut at newlines only; str.splitlines would also cut at U+2028 inside a JSON string."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = rest[-1:]
    yield b"".join(pending)


def _parse_lines(lines: Iterable[bytes], counted: bool) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        size = len(line) + 1 if counted else 0
        if number == 1:
            if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                yield Record("1", problem="is UTF-16 text; save the file as UTF-8")
                return
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"is not valid UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1})"
            yield Record(str(number), problem=reason, size=size)
            continue
        value, problem = _parse_object(text)
        yield Record(str(number), value, problem, size)


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) != len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} appears twice in one object")
    return mapping


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _parse_object(text: str) -> tuple[Any, str]:
    try:
        return _DECODER.decode(text), ""
    except json.JSONDecodeError as error:
        return None, f"is not valid JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        return None, "is not usable JSON: nested too deeply"
    except ValueError as error:
        return None, f"is not usable JSON: {error}"


def _read_json(file: DataFile) -> Iterator[Record]:
    """A list of objects; or objects one after another, whatever the line breaks between them."""
    data = b"".join(_chunks(file)).removeprefix(b"\xef\xbb\xbf")
    start = data.lstrip()[:1]
    first_line = data.lstrip().split(b"\n", 1)[0]
    is_lines = start != b"[" and not _parse_object(first_line.decode("utf-8", "replace"))[1]
    if is_lines or start not in (b"[", b"{"):
        yield from _parse_lines(_split_lines([data]), counted=not file.compression)
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        yield Record(str(number), problem=f"is not valid UTF-8 (byte 0x{data[error.start]:02x})")
        return
    yield from _decode_values(text, in_list=start == b"[")


def _decode_values(text: str, in_list: bool) -> Iterator[Record]:
    """Walk over JSON values, separated by commas in a list; line numbers are where each starts."""
    position = _skip_space(text, 0) + in_list
    line = counted_to = 0

    def at(place: int) -> str:
        nonlocal line, counted_to
        line += text.count("\n", counted_to, place)
        counted_to = max(counted_to, place)
        return str(line + 1)

    lost = "; what follows in this file cannot be read"
    first = True
    while True:
        position = _skip_space(text, position)
        if in_list and text[position : position + 1] == "]":
            position = _skip_space(text, position + 1)
            if position < len(text):
                yield Record(at(position), problem=f"has text after the list's end{lost}")
            return
        if in_list and not first:
            if text[position : position + 1] != ",":
                problem = f"is not valid JSON: ',' or ']' expected{lost}"
                yield Record(at(min(position, len(text))), problem=problem)
                return
            position = _skip_space(text, position + 1)
        if not in_list and position >= len(text):
            return
        place = at(position)
        try:
            value, end = _DECODER.raw_decode(text, position)
        except json.JSONDecodeError as error:
            problem = f"is not valid JSON: {error.msg} (column {error.colno}){lost}"
            yield Record(str(error.lineno), problem=problem)
            return
        except RecursionError:
            yield Record(place, problem=f"is not usable JSON: nested too deeply{lost}")
            return
        except ValueError as error:
            yield Record(place, problem=f"is not usable JSON: {error}{lost}")
            return
        yield Record(place, value, size=len(text[position:end].encode("utf-8", "replace")))
        position, first = end, False


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


def _read_parquet(file: DataFile) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(str(number), row)
    except pyarrow.ArrowException as error:
        yield Record(str(number + 1), problem=f"cannot be read as parquet: {error}")


def _read_hub(file: DataFile) -> Iterator[Record]:
    """Rows of a hub data set; its own scripts are never run."""
    _, name, *rest = file.path.split(":")
    config = rest[0] if len(rest) == 2 else None
    split = rest[-1] if rest else "train"
    try:
        if file.kind == "hf":
            import datasets

            rows = datasets.load_dataset(name, config, split=split)
        else:
            from modelscope.msdatasets import MsDataset

            rows = MsDataset.load(name, subset_name=config, split=split)
    except Exception as error:  # the hub clients raise many kinds, all of them the user's to know
        reason = f"cannot be loaded: {type(error).__name__}: {error}"
        yield Record("1", problem=reason)
        return
    for number, row in enumerate(rows, start=1):
        yield Record(str(number), dict(row))
