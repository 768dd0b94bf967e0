"""From a source to its records, each with its place; what cannot be read is a record as well.

Bytes must be UTF-8; a byte order mark, CRLF and blank lines are fine. A line that cannot be read
becomes a record with a problem, and reading goes on; where the rest of a file is lost (damaged
compression, a broken list) the problem says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from minimind_dpo.data.read.content import Record, encoding_problem, read_chunks, split_lines
from minimind_dpo.data.read.formats import KNOWN
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.read.sources import HUBS, DataFile
from minimind_dpo.data.read.tables import read_parquet, read_table
from minimind_dpo.disk import sha256
from minimind_dpo.options.problem import Problem

_SPACE = re.compile(r"[ \t\r\n]*")


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


def iterate_records(file: DataFile, columns: Iterable[str] = ()) -> Iterator[Record]:
    """Read a file's records one by one; problems come as records, and none is raised."""
    known = {*KNOWN, *columns}
    line = 0
    try:
        problem = "" if file.kind in ("parquet", *HUBS) else encoding_problem(file)
        if problem:
            yield Record(file.name, problem=problem)
            return
        for record in _read(file, known):
            line = int(record.source)
            yield Record(f"{file.name}:{line}", record.value, record.problem, record.size)
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read on: {error}; is the file damaged, or cut off?"
        yield Record(f"{file.name}:{line + 1}", problem=reason)


def _read(file: DataFile, known: set[str]) -> Iterator[Record]:
    match file.kind:
        case "jsonl":
            return _read_lines(file)
        case "json":
            return _read_json(file)
        case "csv" | "tsv":
            return read_table(file)
        case "parquet":
            return read_parquet(file, known)
        case _:
            return _read_hub(file)


def _read_lines(file: DataFile) -> Iterator[Record]:
    return _parse_lines(split_lines(read_chunks(file)), counted=not file.compression)


def _parse_lines(lines: Iterable[bytes], counted: bool) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line or line.isspace():
            continue
        size = len(line) + 1 if counted else 0
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
        earlier: set[str] = set()
        for key, _ in items:
            if key in earlier:
                raise ValueError(f"key {key!r:.60} appears twice in one object")
            earlier.add(key)
    return mapping


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _parse_object(text: str) -> tuple[Any, str]:
    try:
        return _DECODER.decode(text), ""
    except (ValueError, RecursionError) as error:
        return None, _json_problem(error)


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg} (column {error.colno})"
    reason = "nested too deeply" if isinstance(error, RecursionError) else error
    return f"is not usable JSON: {reason}"


def _read_json(file: DataFile) -> Iterator[Record]:
    """A list of objects; or objects one after another, whatever the line breaks between them."""
    data = b"".join(read_chunks(file)).removeprefix(b"\xef\xbb\xbf")
    start = data.lstrip()[:1]
    first_line = data.lstrip().split(b"\n", 1)[0]
    is_lines = start != b"[" and not _parse_object(first_line.decode("utf-8", "replace"))[1]
    if is_lines or start not in (b"[", b"{"):
        yield from _parse_lines(split_lines([data]), counted=not file.compression)
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
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                place = str(error.lineno)
            yield Record(place, problem=_json_problem(error) + lost)
            return
        yield Record(place, value, size=len(text[position:end].encode("utf-8", "replace")))
        position, first = end, False


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()


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
