"""Rows of tables as records: CSV and TSV with a header, parquet."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection, Iterator
from typing import Any

from minimind_dpo.data.read.content import LONGEST, Record, not_utf8, read_chunks, split_lines
from minimind_dpo.data.read.sources import TABLES, DataFile

_TURNS = re.compile(r"""\s*\[\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")
_ROWS = 1024


def _lines(file: DataFile, taken: list[int]) -> Iterator[str]:
    """Text lines of a file, their ends kept; `taken` counts the bytes, from [0]."""
    for line in split_lines(read_chunks(file)):
        text = line if taken[0] else line.removeprefix(codecs.BOM_UTF8)
        taken[0] += len(line) + 1
        # Bytes that are not UTF-8 are a problem of their row, not of the rows after it.
        yield text.decode("utf-8", "surrogateescape") + "\n"


def read_table(file: DataFile) -> Iterator[Record]:
    """Rows of a CSV or TSV file as objects of text; a cell that holds turns as JSON is a list."""
    csv.field_size_limit(LONGEST)
    taken = [0]
    reader = csv.reader(_lines(file, taken), delimiter=TABLES[file.kind], strict=True)
    header: list[str] = []
    counted = 0
    while True:
        line, row, problem = reader.line_num + 1, [], ""
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not valid {file.kind.upper()}: {error}"
        if not row and not problem:
            continue
        if not header and not problem:
            header = row
            if len(set(header)) < len(header):
                twice = next(name for name in header if header.count(name) > 1)
                yield Record(str(line), problem=f"names the column {twice!r:.40} twice")
                return
            continue
        value = None
        if not problem:
            value, problem = _row(header, row)
        length, counted = taken[0] - counted, taken[0]
        yield Record(str(line), value, problem, 0 if file.compression else length)


def _row(header: list[str], row: list[str]) -> tuple[dict[str, Any] | None, str]:
    """A row by the names of its columns, or why it is none."""
    if len(row) != len(header):
        return None, f"has {len(row)} values for {len(header)} columns"
    if problem := not_utf8(",".join(row)):
        return None, problem
    try:
        return {name: _cell(text) for name, text in zip(header, row, strict=True)}, ""
    except ValueError as error:
        return None, str(error)


def _cell(text: str) -> Any:
    if not (match := _TURNS.match(text)):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if match[1] == "'":
            why = "holds turns as Python prints them, not as JSON; write the file as jsonl instead"
            raise ValueError(why) from None
        raise ValueError(f"holds turns that are not valid JSON: {error}") from None


def read_parquet(file: DataFile, known: Collection[str]) -> Iterator[Record]:
    """Rows of a parquet file; of columns beyond `known`, of any type, the names alone."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            names = parquet.schema_arrow.names
            unread = dict.fromkeys(name for name in names if name not in known)
            columns = [name for name in names if name in known]
            for batch in parquet.iter_batches(_ROWS, columns=columns):
                for value, problem in _values(batch):
                    number += 1
                    yield Record(str(number), None if problem else {**unread, **value}, problem)
    except pyarrow.ArrowException as error:
        yield Record(str(number + 1), problem=f"cannot be read as parquet: {error}")


def _values(batch: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a batch; one that Python has no value for is a problem of its own."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        if batch.num_rows == 1:
            yield {}, "has a value that cannot be read as JSON: a date or a time, or bytes"
            return
        for row in range(batch.num_rows):
            yield from _values(batch.slice(row, 1))
        return
    yield from ((row, "") for row in rows)
