"""From a source to its records, each with its place; what cannot be read is a record as well.

Bytes must be UTF-8; a byte order mark, CRLF and blank lines are fine. A line that cannot be read
becomes a record with a problem, and reading goes on; where the rest of a file is lost (damaged
compression, a broken list) the problem says so.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from minimind_dpo.checksums import sha256
from minimind_dpo.data.read.content import Record, TooLongError, encoding_problem
from minimind_dpo.data.read.formats import KNOWN
from minimind_dpo.data.read.json_values import read_json, read_lines
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.read.sources import HUBS, DataFile
from minimind_dpo.data.read.tables import read_parquet, read_table
from minimind_dpo.options.problem import Problem


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
    except TooLongError as error:
        yield Record(f"{file.name}:{line + 1}", problem=str(error))
    except (OSError, EOFError, zlib.error) as error:
        reason = f"cannot be read on: {error}; is the file damaged, or cut off?"
        yield Record(f"{file.name}:{line + 1}", problem=reason)


def _read(file: DataFile, known: set[str]) -> Iterator[Record]:
    match file.kind:
        case "jsonl":
            return read_lines(file)
        case "json":
            return read_json(file)
        case "csv" | "tsv":
            return read_table(file)
        case "parquet":
            return read_parquet(file, known)
        case _:
            return _read_hub(file)


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
