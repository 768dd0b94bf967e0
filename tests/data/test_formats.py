"""The files that people have: other columns, other formats, tables, other encodings."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo.batch import PreferencePair
from minimind_dpo.config.compose import compose
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import ColumnOptions, DataOptions, data_problems
from minimind_dpo.data.read.formats import COLUMNS
from minimind_dpo.data.read.pairs import FileSummary, read_pairs
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.options.problem import Problem
from minimind_dpo.run.evaluation import _read_turns


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(files: Any, **columns: str) -> tuple[list[PreferencePair], list[str], list[FileSummary]]:
    problems: list[Problem] = []
    summaries: list[FileSummary] = []
    found = read_pairs(files, columns=columns, on_problem=problems.append, on_file=summaries.append)
    return list(found), list(map(str, problems)), summaries


ORCA = {"system": "be kind", "question": "q", "chosen": "x", "rejected": "y"}
ALPACA = {"instruction": "translate", "input": "q", "chosen": "x", "rejected": "y"}
SHAREGPT = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "x"},
    "rejected": {"from": "gpt", "value": "y"},
}
HH = {
    "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nmore\n\nAssistant: x",
    "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nmore\n\nAssistant: y",
}
ULTRAFEEDBACK = {
    "prompt": "q",
    "prompt_id": "1",
    "messages": [user("q"), answer("x")],
    "chosen": [user("q"), answer("x")],
    "rejected": [user("q"), answer("y")],
    "score_chosen": 8.0,
}


@pytest.mark.parametrize(
    ("record", "kind", "prompt", "ignored"),
    [
        (ORCA, "orca", ({"role": "system", "content": "be kind"}, user("q")), set()),
        ({**ORCA, "system": ""}, "orca", (user("q"),), set()),
        ({**ORCA, "system": None, "id": 1}, "orca", (user("q"),), {"id"}),
        (ALPACA, "alpaca", (user("translate\nq"),), set()),
        ({**ALPACA, "input": ""}, "alpaca", (user("translate"),), set()),
        ({**ALPACA, "history": []}, "alpaca", (user("translate\nq"),), set()),
        (
            {**ALPACA, "input": None, "history": [["a", "b"]]},
            "alpaca",
            (user("a"), answer("b"), user("translate")),
            set(),
        ),
        (SHAREGPT, "sharegpt", (user("q"),), set()),
        (HH, "hh", (user("q"), answer("a"), user("more\n\nmore")), set()),
        (
            ULTRAFEEDBACK,
            "minimind",
            (user("q"),),
            {"prompt_id", "messages", "score_chosen"},
        ),
        # A prompt of its own goes before the columns of other formats.
        ({**ORCA, "prompt": "p", "system": None}, "prompt_turns", (user("p"),), {"question"}),
        (
            {
                "question": "q",
                "chosen": [user("p"), answer("x")],
                "rejected": [user("p"), answer("y")],
            },
            "minimind",
            (user("p"),),
            {"question"},
        ),
    ],
)
def test_formats_that_people_have_are_known_by_their_columns(
    write, record, kind, prompt, ignored
) -> None:
    (pair,), problems, (summary,) = read(write("d.jsonl", record))
    assert problems == []
    assert pair.prompt == prompt
    assert (pair.chosen, pair.rejected) == (answer("x"), answer("y"))
    assert summary.formats == {kind: 1}
    assert summary.ignored_columns == ignored


@pytest.mark.parametrize("column", ["system", "tools", "chat_template_kwargs"])
def test_lines_of_a_file_of_conversations_are_turns_though_that_column_is_empty(
    write, column
) -> None:
    """As the other lines of the file; without the column three texts are plain text."""
    record = {"prompt": "q", "chosen": "x", "rejected": "y"}
    for empty in (None, ""):
        (pair,), _, (summary,) = read(write("d.jsonl", {**record, column: empty}))
        assert (pair.prompt, pair.chosen) == ((user("q"),), answer("x"))
        assert summary.formats == {"prompt_turns": 1}
    (pair,), _, _ = read(write("d.jsonl", record))
    assert (pair.prompt, pair.chosen) == ("q", "x")


def test_columns_of_other_names_are_taken_by_the_names_that_are_given(write) -> None:
    record = {
        "q": "hello",
        "good": "x",
        "bad": "y",
        "sys": "be kind",
        "gap": 0.5,
        "prompt": "not this",
    }
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "system": "sys", "margin": "gap"}
    (pair,), problems, (summary,) = read(write("d.jsonl", record), **names)
    assert problems == []
    assert pair.prompt == ({"role": "system", "content": "be kind"}, user("hello"))
    assert (pair.chosen, pair.rejected, pair.margin) == (answer("x"), answer("y"), 0.5)
    assert summary.ignored_columns == {"prompt"}


def test_a_named_column_that_is_not_there_is_an_error_and_never_passed_over(write) -> None:
    path = write("d.jsonl", {"question": "q", "chosen": "x", "rejected": "y"})
    _, problems, _ = read(path, chosen="good")
    assert "'chosen' (column 'good') is missing (columns: 'question', 'chosen'" in problems[0]
    with pytest.raises(DataError, match=r"data\.columns\.system=sys: no record of d\.jsonl has"):
        read(path, system="sys")
    with pytest.raises(DataError, match=r"data\.columns\.prompt=q: no record of"):
        read(path, prompt="q")


def test_every_key_of_data_columns_is_a_column_that_pairs_are_read_from() -> None:
    assert tuple(vars(ColumnOptions())) == COLUMNS
    config = compose(["data.columns.prompt=question", "data.columns.margin=gap"])
    assert config.data.columns.named() == {"prompt": "question", "margin": "gap"}


def test_an_evaluation_reads_its_prompts_from_the_columns_that_training_reads(
    write, tokenizer, tmp_path
) -> None:
    path = write("d.jsonl", {"query": "q", "chosen": "x", "rejected": "y"})
    columns = ColumnOptions(prompt="query")
    options = DataOptions(train=path, columns=columns, cache_dir=str(tmp_path / "cache"))
    data = PreferenceDataModule(tokenizer, options)
    data.prepare_data()
    assert data.train_store is not None
    assert _read_turns(data, {pair.source for pair in data.train_store}) == {"d.jsonl:1": "q"}


def test_columns_that_exclude_each_other_are_refused(write) -> None:
    path = write("d.jsonl", ORCA)

    def problems(**names: str) -> list[str]:
        options = DataOptions(train=path, columns=ColumnOptions(**names))
        return [str(problem) for problem in data_problems(options)]

    assert "names the same column as data.columns.rejected" in problems(chosen="a", rejected="a")[0]
    assert "excludes data.columns.prompt" in problems(prompt="a", conversations="b")[0]
    assert "Name a column" in problems(prompt="")[0]
    assert problems(prompt="a", chosen="b") == []


def table(path: Path, rows: list[list[str]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize(("ending", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_tables_read_like_lines(tmp_path, ending, delimiter) -> None:
    turns = json.dumps([user("a"), answer("b"), user("c")], ensure_ascii=False)
    rows = [
        ["prompt", "chosen", "rejected", "system", "margin"],
        ['two\nlines, "quoted"\tand more', "好", "", "", ""],
        ["q", '[1, 2] and {"a": 1}', "42", "be kind", "0.5"],
        [turns, "x", "y", "", ""],
    ]
    path = table(tmp_path / f"d.{ending}", rows, delimiter)
    pairs, problems, (summary,) = read(path)
    assert problems == []
    assert [pair.source for pair in pairs] == [f"d.{ending}:2", f"d.{ending}:4", f"d.{ending}:5"]
    assert pairs[0].prompt == (user(rows[1][0]),)
    assert (pairs[0].chosen, pairs[0].rejected) == (answer("好"), answer(""))
    assert pairs[1].prompt == ({"role": "system", "content": "be kind"}, user("q"))
    assert (pairs[1].chosen, pairs[1].margin) == (answer(rows[2][1]), 0.5)
    assert pairs[2].prompt == (user("a"), answer("b"), user("c"))
    assert summary.ignored_columns == set()
    packed = tmp_path / f"p.{ending}.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert [pair.prompt for pair in read(packed)[0]] == [pair.prompt for pair in pairs]


def test_bad_rows_of_a_table_are_named_and_the_next_are_read(tmp_path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(
        b"prompt,chosen,rejected,weight\r\n"
        b"q,x,y,1\r\n"
        b"q,x\r\n"
        b"\r\n"
        b"q,\xff,y,1\r\n"
        b'q,"x"x,y,1\r\n'
        b"q,x,y,heavy\r\n"
        b"\"[{'role': 'user', 'content': 'q'}]\",x,y,1\r\n"
        b"q,x,y,2\r\n"
        b'q,"x,y,1\r\n'
    )
    pairs, problems, _ = read(path)
    assert [(pair.source, pair.weight) for pair in pairs] == [("d.csv:2", 1.0), ("d.csv:9", 2.0)]
    for found, expected in zip(
        problems,
        [
            "d.csv:3: has 2 values for 4 columns",
            "d.csv:5: is not valid UTF-8 (byte 0xff at 3).",
            "d.csv:6: is not valid CSV: ",
            "d.csv:7: 'weight' is 'heavy', not a number",
            "d.csv:8: holds turns as Python prints them, not as JSON",
            "d.csv:10: is not valid CSV: unexpected end of data",
        ],
        strict=True,
    ):
        assert found.startswith(expected)
    assert read(table(tmp_path / "t.csv", [["a", "b", "a"]]))[1] == [
        "t.csv:1: names the column 'a' twice."
    ]


def test_bytes_of_a_table_are_counted_to_its_size(tmp_path) -> None:
    path = table(tmp_path / "d.csv", [["prompt", "chosen", "rejected"], ["q", "x", "y"], ["q"]])
    counts: list[int] = []
    list(read_pairs(path, on_problem=lambda problem: None, on_bytes=counts.append))
    assert sum(counts) == path.stat().st_size


def test_a_gbk_file_is_called_one_in_one_line_that_says_how_to_convert_it(tmp_path) -> None:
    record = {"prompt": "天空为什么是蓝色的？", "chosen": "因为瑞利散射。", "rejected": "不知道"}
    text = (json.dumps(record, ensure_ascii=False) + "\n") * 30
    (tmp_path / "my dpo.jsonl").write_bytes(text.encode("gbk"))
    (tmp_path / "d.csv").write_bytes("prompt,chosen,rejected\n天空,好,坏\n".encode("gbk"))
    (tmp_path / "d.json").write_bytes(json.dumps([record], ensure_ascii=False).encode("gbk"))
    assert read(tmp_path / "my dpo.jsonl")[1] == [
        "my dpo.jsonl: looks like GBK; convert it to UTF-8 "
        "(iconv -f GB18030 -t UTF-8 'my dpo.jsonl' > 'my dpo.utf8.jsonl')."
    ]
    for name in ("d.csv", "d.json"):
        (problem,) = read(tmp_path / name)[1]
        assert problem.startswith(f"{name}: looks like GBK")
    # One bad byte in UTF-8 does not make a file GBK, nor do the accents of Latin-1.
    data = text.encode()
    (tmp_path / "bad.jsonl").write_bytes(data[:20] + b"\xff" + data[21:])
    (problem,) = read(tmp_path / "bad.jsonl")[1]
    assert problem.startswith("bad.jsonl:1: is not valid UTF-8 (byte 0x")
    french = json.dumps({**record, "prompt": "un café, déjà vu"}, ensure_ascii=False)
    (tmp_path / "f.jsonl").write_bytes(french.encode("latin-1", "ignore"))
    (problem,) = read(tmp_path / "f.jsonl")[1]
    assert problem.startswith("f.jsonl:1: is not valid UTF-8 (byte 0xe9")


def test_turns_in_the_place_of_a_number_are_a_problem_of_their_row(tmp_path) -> None:
    turns = '"[{""role"": ""user"", ""content"": ""q""}]"'
    (tmp_path / "t.csv").write_text(f"prompt,chosen,rejected,weight\nq,x,y,{turns}\n")
    problems = []
    assert list(read_pairs(tmp_path / "t.csv", on_problem=problems.append)) == []
    (problem,) = problems
    assert str(problem).startswith("t.csv:2: 'weight' is [{'role': 'user',")
