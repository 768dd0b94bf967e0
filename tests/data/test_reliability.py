"""Files made to do harm, or by another program, cost no more than their rows."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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
    assert store.sources == [r"\xb2\xe2\xca\xd4.jsonl:1", r"\xb2\xe2\xca\xd4.jsonl:2"]
    (file,) = store.report["files"]
    assert file["ignored_columns"] == [r"\ud800", r"\xb9"]
    assert store.unused.read_text().startswith(r"\xb2\xe2\xca\xd4.jsonl:3: is not valid JSON")


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
def test_a_small_file_that_unpacks_to_much_is_read_in_little_memory(tmp_path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "bomb.jsonl.zst"
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
        stream.write(json.dumps(PAIR).encode())
        for _ in range(500):
            stream.write(b"\n" * (1 << 20))
    assert path.stat().st_size < 30_000
    (file,) = resolve_files(path)
    assert max(map(len, read_chunks(file))) <= 1 << 20
    code = (
        "import resource, sys; from minimind_dpo.data.read.content import *\n"
        "from minimind_dpo.data.read.sources import resolve_files\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "size = sum(map(len, read_chunks(resolve_files(sys.argv[1])[0])))\n"
        "print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True)
    size, grown = map(int, output.split())
    assert size > 500 << 20
    assert grown < 200 * 1024  # KiB


def test_a_key_that_stands_twice_among_many_is_found_in_one_pass(write) -> None:
    keys = ",".join(f'"k{n}": 1' for n in range(100_000))
    path = write("d.jsonl", f'{{{keys}, "k99999": 2}}')
    started = time.process_time()
    _, problems, _ = read(path)
    assert problems == ["d.jsonl:1: is not usable JSON: key 'k99999' appears twice in one object."]
    assert time.process_time() - started < 5
