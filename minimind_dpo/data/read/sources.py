"""From what the user names (files, lists, globs, hub data sets) to a checked list of sources.

    path.jsonl  path.ndjson       one JSON object a line; also .gz and .zst
    path.json                     one list of objects, or objects one after another; also .gz, .zst
    path.csv  path.tsv            a header, then one row a pair; also .gz and .zst
    path.parquet                  one object a row (needs pyarrow)
    hf:NAME[:SPLIT]               Hugging Face data set (needs datasets); SPLIT is `train` if absent
    hf:NAME:CONFIG:SPLIT          the same, of a named configuration
    modelscope:NAME[:SPLIT]       ModelScope data set (needs modelscope), likewise

Every name is checked before anything is read, and all that is wrong is told at once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from minimind_dpo.data.read.problems import DataError
from minimind_dpo.options.problem import Problem, missing_file, package_problems, printable

Files: TypeAlias = "str | Path | Iterable[str | Path]"
"""A path, a glob, a hub data set, or several of these."""

_KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
_KINDS |= {".csv": "csv", ".tsv": "tsv"}
TABLES = {"csv": ",", "tsv": "\t"}
"""Kinds of file whose values are all text, and what is between two values."""
_EXTRAS = {"datasets": "datasets", "modelscope": "modelscope", "pyarrow": "parquet"}
_EXTRAS["zstandard"] = "zstd"
HUBS = {"hf": "datasets", "modelscope": "modelscope"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """One source of records.

    Attributes:
        path: What to open: a file's path, or `hf:...` for a hub data set.
        name: What messages call it; unique among the files given together, and printable.
        kind: `jsonl`, `json`, `csv`, `tsv`, `parquet`, `hf` or `modelscope`.
        compression: `gz`, `zst` or empty.
        size: Bytes on disk, 0 for a hub data set.
    """

    path: str
    name: str
    kind: str
    compression: str = ""
    size: int = 0


def resolve_files(files: Files) -> list[DataFile]:
    """Check and expand what the user named.

    Raises:
        DataError: Naming every entry that does not exist, matches nothing, is a folder, is empty,
            has an unknown ending, is given twice, or needs a package that is not installed.
    """
    problems: list[Problem] = []
    entries = [files] if isinstance(files, str | Path) else list(files)
    if not entries:
        problems.append(Problem("data", "no file is named; set data.train to a file, list or glob"))
    sources: list[DataFile] = []
    entry_of: dict[str, str] = {}
    for entry in map(str, entries):
        for path in _expand(entry):
            file = _describe(path)
            if isinstance(file, Problem):
                problems.append(file)
                continue
            key = file.path if file.kind in HUBS else os.path.realpath(file.path)
            if key in entry_of:
                why = f"is given twice (also as {entry_of[key]}); its pairs would count double"
                problems.append(Problem(file.path, why))
            entry_of.setdefault(key, entry)
            sources.append(file)
    if problems:
        raise DataError(problems)
    return _with_unique_names(sources)


def _expand(entry: str) -> list[str]:
    """Files that a glob matches; what is no glob, or matches nothing, is left as it is."""
    path = os.path.expanduser(entry)
    if _hub_of(entry) or os.path.lexists(path) or not glob.has_magic(path):
        return [entry if _hub_of(entry) else path]
    return sorted(m for m in glob.glob(path, recursive=True) if os.path.isfile(m)) or [path]


def _hub_of(entry: str) -> str:
    prefix, _, name = entry.partition(":")
    return prefix if prefix in HUBS and name else ""


def _describe_hub(entry: str) -> DataFile | Problem:
    hub, *parts = entry.split(":")
    if len(parts) > 3 or not all(parts):
        forms = ", ".join(f"{hub}:{form}" for form in ("NAME", "NAME:SPLIT", "NAME:CONFIG:SPLIT"))
        return Problem(entry, f"is of none of the forms {forms}")
    return _lacks(entry, HUBS[hub]) or DataFile(entry, entry, hub)


def _describe(path: str) -> DataFile | Problem:
    if _hub_of(path):
        return _describe_hub(path)
    stem, ending = os.path.splitext(path)
    compression = ending[1:].lower() if ending.lower() in (".gz", ".zst") else ""
    if compression:
        ending = os.path.splitext(stem)[1]
    kind = _KINDS.get(ending.lower())
    if not os.path.lexists(path) and glob.has_magic(path):
        why = "matches no file"
    elif os.path.isdir(path):
        why = f"is a folder; name its files, for example {os.path.join(path, '*.jsonl')}"
    elif not os.path.exists(path):
        return missing_file(path, ..., path)
    elif not os.path.isfile(path):
        why = "is not a regular file"
    elif os.path.getsize(path) == 0:
        why = "is empty"
    elif kind is None or (kind == "parquet" and compression):
        why = (
            "has an ending that is not known; readable are "
            ".jsonl, .ndjson, .json, .csv and .tsv (each also .gz or .zst) and .parquet"
        )
    else:
        package = {"zst": "zstandard", "parquet": "pyarrow"}.get(compression or kind, "")
        file = DataFile(path, path, kind, compression, os.path.getsize(path))
        return _lacks(path, package) or file
    return Problem(path, why)


def _lacks(path: str, package: str) -> Problem | None:
    """The problem of an optional package that a source needs and that is not installed."""
    return next(package_problems(path, ..., package, _EXTRAS[package]), None) if package else None


def _with_unique_names(files: list[DataFile]) -> list[DataFile]:
    """Name each file by the shortest end of its path that no other file shares."""
    parts = [[f.path] if f.kind in HUBS else list(Path(f.path).parts) for f in files]
    sources = []
    for index, (file, path) in enumerate(zip(files, parts, strict=True)):
        others = [other for j, other in enumerate(parts) if j != index]
        depth = 1
        while depth < len(path) and any(other[-depth:] == path[-depth:] for other in others):
            depth += 1
        name = printable("/".join(path[-depth:]))
        sources.append(DataFile(file.path, name, file.kind, file.compression, file.size))
    return sources
