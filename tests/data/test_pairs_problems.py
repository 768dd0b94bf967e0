"""Whatever is wrong with a file is told with its name and line, and nothing else is raised."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind_dpo.data.read.formats import KNOWN
from minimind_dpo.data.read.pairs import read_pairs
from minimind_dpo.data.read.problems import SHOWN, DataError, ProblemLog
from minimind_dpo.data.read.sources import resolve_files
from minimind_dpo.options.problem import Problem

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in zip("uab", "qxy", strict=True))
USER["role"], GOOD["role"], BAD["role"] = "user", "assistant", "assistant"
RECORD: dict[str, Any] = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}


def problems_of(path: Any) -> list[str]:
    found: list[Problem] = []
    list(read_pairs(path, on_problem=found.append))
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"chosen": [USER, GOOD]}, "'rejected' is missing (columns: 'chosen'); if another"),
        ({}, "'chosen' and 'rejected' are missing (columns: none)"),
        ([1], "is a list, not an object with 'chosen' and 'rejected'"),
        ("3", "is a number, not an object with 'chosen' and 'rejected'"),
        ('{"chosen": }', "is not valid JSON: Expecting value (column 12)"),
        ('{"a": 1, "a": 2}', "is not usable JSON: key 'a' appears twice in one object"),
        ("[" * 100_000, "is not usable JSON: nested too deeply"),
        ({**RECORD, "chosen": []}, "'chosen' is an empty list"),
        ({**RECORD, "chosen": [USER, "x"]}, "'chosen', turn 2 is text, not an object"),
        ({**RECORD, "chosen": [USER]}, "'chosen' has no assistant turn"),
        ({**RECORD, "chosen": [GOOD]}, "0 and 1 turns come before the last answer"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "has no prompt"),
        (
            {"text": "q", "chosen": "x", "rejected": "y"},
            "'prompt' is missing (columns: 'text', 'chosen', 'rejected'); if another column has "
            "it, name it with data.columns.prompt=NAME",
        ),
        (
            {"question": "q", "instruction": "i", "chosen": "x", "rejected": "y"},
            "has both 'question' and 'instruction'; name the prompt with data.columns.prompt",
        ),
        ({"instruction": "i", "input": 1, "chosen": "x", "rejected": "y"}, "'input' is not text"),
        (
            {"instruction": "i", "history": ["q"], "chosen": "x", "rejected": "y"},
            "'history' is not a list of [question, answer]",
        ),
        (
            {"chosen": "Human: a\n\nAssistant: x", "rejected": "Human: b\n\nAssistant: y"},
            "the prompts of 'chosen' and 'rejected' differ (turn 1)",
        ),
        ({"prompt": " ", "chosen": "x", "rejected": "y"}, "'prompt' is empty"),
        ({"prompt": 1, "chosen": "x", "rejected": "y"}, "'prompt' is a number, not text or a list"),
        ({**RECORD, "prompt": "q", "conversations": []}, "has both 'prompt' and 'conversations'"),
        ({**RECORD, "rejected": [{**USER, "content": "p"}, BAD]}, "differ (turn 1)"),
        ({**RECORD, "chosen": [{"role": "robot", "content": "x"}]}, "'role' is 'robot'; known are"),
        ({**RECORD, "chosen": [{"content": "x"}]}, "'role' is missing; known are"),
        ({**RECORD, "chosen": [{"role": "user"}]}, "turn 1: 'content' is missing"),
        ({**RECORD, "chosen": [{**USER, "content": 1}]}, "'content' is a number, not text"),
        ({**RECORD, "chosen": [{**USER, "content": [{}]}]}, "has a part that is not text"),
        ({**RECORD, "weight": -1}, "'weight' is -1.0, it must not be negative"),
        ({**RECORD, "weight": float("nan")}, "'weight' is not a finite number"),
        ({**RECORD, "margin": float("inf")}, "'margin' is not a finite number"),
        ({**RECORD, "margin": 10**400}, "'margin' is not a finite number"),
        ({**RECORD, "margin": "2"}, "'margin' is text, not a number"),
        ({**RECORD, "weight": True}, "'weight' is true or false, not a number"),
        ({**RECORD, "tools": "[{"}, "'tools' is text that is not JSON"),
        ({**RECORD, "tools": ["f"]}, "'tools' is not a list of function signatures"),
        ({**RECORD, "system": "s"}, "'system' goes with 'prompt' or 'conversations'"),
        ({"prompt": "\ud800", "chosen": "x", "rejected": "y"}, "has half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_and_the_next_is_read(write, line, message) -> None:
    path = write("dpo.jsonl", RECORD, line, RECORD)
    found: list[Problem] = []
    pairs = list(read_pairs(path, on_problem=found.append))
    assert len(pairs) == 2
    assert len(found) == 1
    assert str(found[0]).startswith("dpo.jsonl:2: ")
    assert message in str(found[0])


def test_invalid_utf8_names_the_byte_and_the_next_line_is_read(tmp_path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n' + json.dumps(RECORD).encode())
    assert problems_of(path) == ["d.jsonl:1: is not valid UTF-8 (byte 0xff at 8)."]


def test_utf16_is_recognised(tmp_path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(RECORD), encoding="utf-16")
    assert problems_of(path) == ["d.jsonl: is UTF-16 text; save the file as UTF-8."]


def test_a_file_of_blank_lines_holds_no_record(write) -> None:
    assert problems_of(write("d.jsonl", "", " ")) == ["d.jsonl: holds no record."]
    for name in ("b.jsonl", "b.json"):
        assert problems_of(write(name, "\ufeff", " ")) == [f"{name}: holds no record."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1} {"b"', "d.json:1: is not valid JSON: ',' or ']' expected"),
        ("[\n[1,x", "d.json:2: is not valid JSON"),
        ("[]\nx", "d.json:2: has text after the list's end"),
        ("{\n1", "d.json:2: is not valid JSON"),
        ("nonsense", "d.json:1: is not valid JSON"),
    ],
)
def test_a_broken_json_file_names_the_line_and_what_is_lost(write, text, message) -> None:
    assert message in problems_of(write("d.json", text))[-1]


def test_cut_off_compression_is_a_problem_and_not_a_short_file(tmp_path) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = b"".join(json.dumps({**RECORD, "n": n}).encode() + b"\n" for n in range(20))
    for name, packed in (("gz", gzip.compress(data)), ("zst", zstandard.compress(data))):
        path = tmp_path / f"d.jsonl.{name}"
        path.write_bytes(packed[:-9])
        assert "is the file damaged, or cut off?" in problems_of(path)[-1]
        path.write_bytes(b"no such format" + packed)
        assert "is the file damaged, or cut off?" in problems_of(path)[-1]


def test_a_damaged_parquet_file_is_a_problem(tmp_path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and nothing")
    assert "d.parquet:1: cannot be read as parquet" in problems_of(tmp_path / "d.parquet")[0]


def test_all_file_problems_are_told_at_once(tmp_path, write) -> None:
    write("dpo.jsonl", RECORD)
    (tmp_path / "empty.jsonl").touch()
    write("notes.txt", "x")
    names = ("dpo.jsonl", "./dpo.jsonl", "dpp.jsonl", "*.csv", "", "empty.jsonl", "notes.txt")
    with pytest.raises(DataError) as caught:
        resolve_files([f"{tmp_path}/{name}" for name in names])
    text = str(caught.value)
    assert text.startswith("6 problems in the preference data:")
    for message in (
        "is given twice",
        "/dpp.jsonl: does not exist. Did you mean",
        "*.csv: matches no file",
        "is a folder; name its files",
        "empty.jsonl: is empty",
        "notes.txt: has an ending that is not known",
    ):
        assert message in text


def test_no_file_and_a_missing_folder_say_what_to_do(tmp_path) -> None:
    with pytest.raises(DataError, match=r"set data\.train"):
        resolve_files([])
    with pytest.raises(DataError, match="nor does its folder"):
        resolve_files(tmp_path / "no" / "d.jsonl")


def test_problems_that_say_the_same_are_one_line_with_a_count() -> None:
    log = ProblemLog()
    for line in range(1, 31):
        log(Problem(f"dpo.jsonl:{line}", f"is not valid UTF-8 (byte 0xb9 at {line})"))
    log(Problem("dpo.jsonl:40", "'rejected' is missing"))
    with pytest.raises(DataError) as caught:
        log.raise_if_any()
    assert str(caught.value).splitlines()[:-1] == [
        "31 problems in the preference data:",
        "  dpo.jsonl:1: is not valid UTF-8 (byte 0xb9 at 1).",
        "    and the same in 29 more places: dpo.jsonl:2, dpo.jsonl:3, dpo.jsonl:4, ...",
        "  dpo.jsonl:40: 'rejected' is missing.",
    ]
    assert "data.on_error=skip" in str(caught.value)


def test_the_error_shows_twenty_kinds_of_problem_and_counts_all() -> None:
    log = ProblemLog()
    for line, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 1):
        log(Problem(f"dpo.jsonl:{line}", f"'{letter}' is missing"))
    with pytest.raises(DataError) as caught:
        log.raise_if_any()
    assert (caught.value.total, len(caught.value.problems), SHOWN) == (26, 20, 20)
    text = str(caught.value)
    assert "  dpo.jsonl:20: 't' is missing.\n  ... and 6 more\n" in text
    assert "dpo.jsonl:21" not in text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "tools", "tool_calls", "x"]),
            inner | st.sampled_from(["user", "assistant", "system", "gpt"]),
            max_size=3,
        )
    ),
    max_leaves=8,
)
records = st.dictionaries(
    st.sampled_from(["chosen", "rejected", "chosen", "rejected", *KNOWN]),
    json_values | st.just([USER, GOOD]) | st.just([USER, BAD]) | st.just("text"),
    max_size=6,
)
lines = st.one_of(
    st.binary(max_size=30),
    records.map(lambda record: json.dumps(record).encode()),
    records.map(lambda record: json.dumps(record).encode()[:-2]),
    st.just(json.dumps(RECORD).encode()),
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.lists(lines, max_size=4),
    ending=st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".csv", ".tsv"]),
)
def test_any_bytes_give_pairs_or_problems_with_file_and_line(tmp_path, content, ending) -> None:
    path = Path(tmp_path) / f"dpo{ending}"
    data = b"\n".join(content)
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data + b"\n")
    found: list[Problem] = []
    pairs = list(read_pairs(path, on_problem=found.append))
    place = re.compile(rf"{re.escape(path.name)}(:[1-9][0-9]*)?: .+", re.DOTALL)
    for problem in found:
        assert place.fullmatch(str(problem))
        str(problem).encode()
    for pair in pairs:
        assert re.fullmatch(rf"{re.escape(path.name)}:[1-9][0-9]*", pair.source)
        assert pair.weight >= 0
