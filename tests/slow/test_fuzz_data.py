"""Preference files damaged in every way: each record is a pair or a problem with its place."""

from __future__ import annotations

import contextlib
import copy
import csv
import gzip
import io
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from minimind_dpo.data.read.pairs import read_pairs
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.options.problem import Problem

pytestmark = pytest.mark.slow

FILES = 8300
SEED = 31

USER, ANSWER = {"role": "user", "content": "how 多少?"}, {"role": "assistant", "content": "so\n"}
ROWS: list[dict[str, Any]] = [
    {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]},
    {"prompt": "q", "chosen": "x", "rejected": "y", "margin": 0.5, "weight": 2},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": ""}], "system": "s"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": ANSWER, "rejected": ANSWER},
    {"instruction": "i", "input": "n", "history": [["a", "b"]], "chosen": "c", "rejected": "d"},
    {"question": "q", "chosen": "c", "rejected": "d", "chat_template_kwargs": '{"a": 1}'},
    {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"},
    {"prompt": "q", "chosen": "x", "rejected": "y", "tools": '[{"name": "t"}]', "\ud800": 1},
]
ODD: Final[list[Any]] = [
    *(None, True, 0, -1, 1.5, 1e308, "", " ", "x" * 5000, "\u2028", "\ud800", "<|im_end|>", "{"),
    *([], [[]], {}, {"role": "x"}, {"role": "user"}, {"content": 1}, [USER, USER], [ANSWER], "[1"),
]
TOKENS: Final = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b"\t", b"\0", b"\xff"),
    *(b"\xef\xbb\xbf", b"null", b"NaN", b"1e999", b"-", b"\\ud800", b"\\u12", b"[" * 3000),
    *(b"9" * 5000, b" " * 70_000, "\u4e2d".encode("gbk")),
]


def rows(draw: random.Random) -> list[Any]:
    """A few records, some of them with another value, key, or sort of thing in their place."""
    made = []
    for row in draw.choices(ROWS, k=draw.randint(1, 5)):
        row = json.loads(json.dumps(row))
        for _ in range(draw.choice((0, 0, 1, 1, 2))):
            inner: Any = row
            while isinstance(inner, dict | list) and inner and draw.random() < 0.5:
                key = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
                if not isinstance(inner[key], dict | list):
                    break
                inner = inner[key]
            if isinstance(inner, dict):
                inner[draw.choice([*inner, "role", "weight", "prompt", "x"])] = copy.deepcopy(
                    draw.choice(ODD)
                )
            elif isinstance(inner, list):
                inner.insert(draw.randint(0, len(inner)), copy.deepcopy(draw.choice(ODD)))
        made.append(draw.choice(ODD) if draw.random() < 0.05 else row)
    return made


def written(kind: str, made: list[Any], draw: random.Random) -> bytes:
    """Records as a file of a kind."""
    ascii_ = draw.random() < 0.5
    texts = [json.dumps(row, ensure_ascii=ascii_, indent=draw.choice((None, 1))) for row in made]
    if kind == "json":
        text = draw.choice(("[{}]", "[\n{}\n]", "{}")).format(draw.choice((",", ",\n")).join(texts))
    elif kind == "jsonl":
        text = "".join(
            json.dumps(row, ensure_ascii=ascii_) + draw.choice(("\n", "\r\n")) for row in made
        )
    else:
        names = sorted({name for row in made if isinstance(row, dict) for name in row}) or ["a"]
        out = io.StringIO()
        table = csv.writer(out, delimiter="," if kind == "csv" else "\t")
        table.writerow(names)
        for row in made:
            cells = [row.get(name) if isinstance(row, dict) else row for name in names]
            table.writerow([c if isinstance(c, str) else json.dumps(c) for c in cells])
        text = out.getvalue()
    return text.encode("utf-8", "surrogatepass")


def damaged(data: bytes, draw: random.Random) -> bytes:
    """A file with bytes cut, changed, put in, repeated or swapped."""
    for _ in range(draw.choice((0, 1, 1, 2, 3))):
        at, to = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        piece = data[at:to]
        data = draw.choice(
            [
                data[:at],
                data[:at] + data[to:],
                data[:at] + draw.choice(TOKENS) + data[at:],
                data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :],
                data[:to] + piece + data[to:],
                data[to:] + data[:to],
            ]
        )
    return data


def compressors() -> dict[str, Callable[[bytes], bytes]]:
    zstandard = pytest.importorskip("zstandard")
    return {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def fault(path: Path, rows_written: int, whole: bool) -> str:
    """What is wrong with the way in which a file is read; empty where nothing is."""
    problems: list[Problem] = []
    started = time.process_time()
    try:
        pairs = list(read_pairs(path, on_problem=problems.append))
    except DataError as error:
        return "" if path.name in str(error) and "\ud800" not in str(error) else f"text: {error}"
    except Exception as error:  # what a fuzzer is after
        return f"{type(error).__name__}: {error}"
    places = re.compile(re.escape(path.name) + r"(:\d+)?")
    for problem in problems:
        if not places.fullmatch(problem.key) or len(problem.why) < 5:
            return f"place: {problem}"
        with contextlib.suppress(UnicodeEncodeError):
            str(problem).encode()
            continue
        str(DataError([problem])).encode()
    if whole and len(pairs) + len(problems) != rows_written:
        return f"{rows_written} records, {len(pairs)} pairs and {len(problems)} problems"
    took = time.process_time() - started
    return f"took {took:.1f} s" if took > 5 else ""


def test_no_damage_breaks_the_reader_or_loses_a_record(tmp_path: Path) -> None:
    draw, faults, packers = random.Random(SEED), {}, compressors()
    for number in range(FILES):
        kind, ending = (
            draw.choice(("jsonl", "jsonl", "json", "csv", "tsv")),
            draw.choice(list(packers)),
        )
        made = rows(draw)
        sound = written(kind, made, draw)
        text = damaged(sound, draw)
        packed = packers[ending](text)
        packed = damaged(packed, draw) if ending and draw.random() < 0.3 else packed
        path = tmp_path / f"f{number}.{kind}{ending}"
        path.write_bytes(packed)
        whole = text == sound and packed == packers[ending](text) and kind != "json"
        if said := fault(path, len(made), whole):
            faults[path.name] = said
        else:
            path.unlink()
    print(f"{FILES} files, {len(faults)} broken")
    assert faults == {}
