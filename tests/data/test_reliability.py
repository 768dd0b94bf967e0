"""Files made to do harm, or by another program, cost no more than their rows."""

from __future__ import annotations

import datetime
import gzip
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.content import read_chunks
from minimind_dpo.data.read.pairs import FileSummary, read_pairs
from minimind_dpo.data.read.sources import resolve_files
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.options.problem import Problem

PAIR = {"prompt": "q", "chosen": "x", "rejected": "y"}


def read(path: Path | str) -> tuple[list[str], list[str], FileSummary]:
    problems: list[Problem] = []
    summaries: list[FileSummary] = []
    pairs = list(read_pairs(path, on_problem=problems.append, on_file=summaries.append))
    return [pair.source for pair in pairs], list(map(str, problems)), summaries[0]


def test_parquet_columns_that_nobody_reads_may_hold_what_python_cannot(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([PAIR, PAIR])
    for name, kind in (("at", pyarrow.timestamp("ns")), ("took", pyarrow.duration("ns"))):
        table = table.append_column(name, pyarrow.array([1, 2**62], kind))
    parquet.write_table(table, tmp_path / "d.parquet")
    sources, problems, summary = read(tmp_path / "d.parquet")
    assert (sources, problems) == (["d.parquet:1", "d.parquet:2"], [])
    assert summary.ignored_columns == {"at", "took"}


def test_a_parquet_row_that_python_cannot_hold_is_a_problem_of_that_row(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([PAIR] * 3)
    weights = pyarrow.array([None, 2**62, None], pyarrow.timestamp("us"))
    parquet.write_table(table.append_column("weight", weights), tmp_path / "d.parquet")
    sources, problems, _ = read(tmp_path / "d.parquet")
    assert sources == ["d.parquet:1", "d.parquet:3"]
    (problem,) = problems
    assert problem.startswith("d.parquet:2: has a value that cannot be read as JSON: a date")
    day = pyarrow.array([None, datetime.date(2024, 1, 1), None])
    parquet.write_table(table.append_column("weight", day), tmp_path / "e.parquet")
    assert read(tmp_path / "e.parquet")[1] == ["e.parquet:2: 'weight' is a date, not a number."]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes on Linux alone")
def test_names_that_are_not_utf8_are_written_and_printed(tmp_path, tokenizer) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + "/测试.jsonl".encode("gbk"))
    line = json.dumps({**PAIR, chr(0xD800): 1, chr(0xDCB9): 2})
    Path(name).write_text(f"{line}\n{line}\noops\n")
    options = DataOptions(cache_dir=str(tmp_path / "cache"), on_error="skip")
    store = prepare_store(name, PairTokenizer(tokenizer), options, progress=False)
    assert [pair.source for pair in store] == [
        r"\xb2\xe2\xca\xd4.jsonl:1",
        r"\xb2\xe2\xca\xd4.jsonl:2",
    ]
    (file,) = store.report["files"]
    assert file["ignored_columns"] == [r"\ud800", r"\xb9"]
    assert store.unused.read_text().startswith(r"\xb2\xe2\xca\xd4.jsonl:3: is not valid JSON")


def peak_of(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and the most bytes that Python had while it ran."""
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_small_zst_file_is_unpacked_in_little_memory(tmp_path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "bomb.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        for _ in range(400):
            stream.write(b"\n" * (1 << 20))
    assert path.stat().st_size < 30_000
    (file,) = resolve_files(path)
    sizes, peak = peak_of(lambda: [len(chunk) for chunk in read_chunks(file)])
    assert sum(sizes) == 400 << 20
    assert max(sizes) <= 1 << 20
    assert peak < 200 << 20


LINE = json.dumps(PAIR)
BLANKS = b" " * 1023 + b"\n"


@pytest.mark.parametrize(
    ("name", "start", "filler", "end", "pairs", "problem"),
    [
        ("d.jsonl", LINE, BLANKS, LINE, 2, ""),
        ("d.json", f"[{LINE},", BLANKS, f"{LINE}]", 2, ""),
        ("d.json", f"[{LINE}", b"," * 1024, "", 1, "d.json.gz:1: is not valid JSON"),
        ("d.jsonl", f'{LINE}\n"', b"x" * 1024, "", 1, "d.jsonl.gz:2: has a line of more than"),
        ("d.json", f'[{LINE},\n"', b"x" * 1024, "", 1, "d.json.gz:2: is no JSON value of at most"),
        ("d.json", f"{LINE}\n[", b"[],[" * 256, "", 1, "d.json.gz:2: has a line of more than"),
        ("d.csv", 'prompt,chosen,rejected\nq,x,y\nq,"', BLANKS, "", 1, "d.csv.gz:3: is not valid"),
    ],
)
def test_a_small_file_that_unpacks_to_much_is_read_in_little_memory(
    tmp_path, monkeypatch, name, start, filler, end, pairs, problem
) -> None:
    for module in ("content", "json_values", "tables"):
        monkeypatch.setattr(f"minimind_dpo.data.read.{module}.LONGEST", 1 << 20)
    path = tmp_path / f"{name}.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(start.encode() + filler * (40 << 10) + end.encode())
    assert path.stat().st_size < 200_000
    (sources, problems, _), peak = peak_of(lambda: read(path))
    assert len(sources) == pairs
    assert [said[: len(problem)] for said in problems[:1]] == [problem] * bool(problem)
    assert peak < 24 << 20  # of 40 MiB


def test_a_list_of_json_is_read_in_pieces_with_every_line_and_column_right_past_bad_bytes(
    tmp_path,
) -> None:
    rows = [{**PAIR, "prompt": f"q {n} \u4e2d\U0001f600" + "x" * (n % 700)} for n in range(4000)]
    texts = [
        json.dumps(row, indent=n % 3 or None, ensure_ascii=False) for n, row in enumerate(rows)
    ]
    written, lines = "[", []
    for n, text in enumerate(texts):
        lines.append(written.count("\n") + 1)
        written += text + (",\n" if n % 2 else ", ")
    line = written.count("\n") + 1
    column = len(written.rpartition("\n")[2]) + len('{"chosen" ') + 1
    (tmp_path / "d.json").write_text(written + '{"chosen" 1}]', encoding="utf-8")
    assert len(written.encode()) > 1 << 20
    sources, problems, _ = read(tmp_path / "d.json")
    assert sources == [f"d.json:{number}" for number in lines]
    assert problems == [
        f"d.json:{line}: is not valid JSON: Expecting ':' delimiter (column {column}); "
        "what follows in this file cannot be read."
    ]
    bad = written[:-2].encode() + b',\n"\xff",\n' + texts[0].encode() + b"]"
    (tmp_path / "e.json").write_bytes(bad)
    sources, problems, _ = read(tmp_path / "e.json")
    at = (written[:-2].count("\n")) + 2
    assert sources == [f"e.json:{number}" for number in [*lines, at + 1]]
    assert problems == [f"e.json:{at}: is not valid UTF-8 (byte 0xff at 2)."]


def test_a_key_that_stands_twice_among_many_is_found_in_one_pass(write) -> None:
    keys = ",".join(f'"k{n}": 1' for n in range(100_000))
    path = write("d.jsonl", f'{{{keys}, "k99999": 2}}')
    started = time.process_time()
    _, problems, _ = read(path)
    assert problems == ["d.jsonl:1: is not usable JSON: key 'k99999' appears twice in one object."]
    assert time.process_time() - started < 5
