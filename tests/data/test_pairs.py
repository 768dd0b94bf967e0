"""Files become preference pairs, whatever their format and wrapping."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo.batch import PreferencePair
from minimind_dpo.data.read.pairs import FileSummary, read_pairs
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.read.sources import resolve_files
from minimind_dpo.options.problem import Problem


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


MINIMIND = {"chosen": [user("q"), answer("good")], "rejected": [user("q"), answer("bad")]}


def read(files: Any) -> tuple[list[PreferencePair], list[Problem], list[FileSummary]]:
    problems: list[Problem] = []
    summaries: list[FileSummary] = []
    pairs = list(read_pairs(files, on_problem=problems.append, on_file=summaries.append))
    return pairs, problems, summaries


def test_minimind_lines_share_the_turns_before_the_answer(write) -> None:
    turns = [{"role": "system", "content": "s"}, user("q1"), answer("a1"), user("q2")]
    path = write("dpo.jsonl", {"chosen": [*turns, answer("x")], "rejected": [*turns, answer("y")]})
    (pair,), problems, (summary,) = read(path)
    assert pair == PreferencePair(tuple(turns), answer("x"), answer("y"), "dpo.jsonl:1")
    assert problems == []
    assert summary == FileSummary("dpo.jsonl", Counter(minimind=1), pairs=1)


def test_prompt_text_stays_text(write) -> None:
    path = write("p.jsonl", {"prompt": "q", "chosen": "x", "rejected": "y"})
    (pair,), _, (summary,) = read(path)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("q", "x", "y")
    assert summary.formats == {"prompt_text": 1}


@pytest.mark.parametrize(
    ("prompt", "side"),
    [
        ([user("q")], lambda text: [answer(text)]),
        ([user("q")], answer),
        ([user("q")], lambda text: text),
        ("q", lambda text: [answer(text)]),
    ],
)
def test_prompt_turns_and_sides_may_be_lists_objects_or_text(write, prompt, side) -> None:
    path = write("p.jsonl", {"prompt": prompt, "chosen": side("x"), "rejected": side("y")})
    (pair,), _, (summary,) = read(path)
    assert pair == PreferencePair((user("q"),), answer("x"), answer("y"), "p.jsonl:1")
    assert summary.formats == {"prompt_turns": 1}


def test_a_prompt_that_repeats_the_first_turn_is_that_turn(write) -> None:
    (pair,), problems, _ = read(write("u.jsonl", {"prompt": "q", **MINIMIND}))
    assert pair.prompt == (user("q"),)
    assert problems == []
    _, problems, _ = read(write("w.jsonl", {"prompt": "other", **MINIMIND}))
    assert "'prompt' differs" in str(problems[0])


def test_sharegpt_names_become_roles(write) -> None:
    record = {
        "system": "be kind",
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "x"},
        "rejected": {"from": "gpt", "value": "y"},
    }
    (pair,), _, (summary,) = read(write("s.jsonl", record))
    assert pair.prompt == ({"role": "system", "content": "be kind"}, user("q"))
    assert (pair.chosen, pair.rejected) == (answer("x"), answer("y"))
    assert summary.formats == {"sharegpt": 1}


def test_turns_after_the_last_answer_are_ignored_and_counted(write) -> None:
    record = {
        "chosen": [user("q"), answer("good"), user("thanks")],
        "rejected": [user("q"), answer("bad"), user("hm"), user("well")],
    }
    (pair,), problems, (summary,) = read(write("t.jsonl", record))
    assert (pair.chosen, pair.rejected) == (answer("good"), answer("bad"))
    assert summary.ignored_turns == 3
    assert problems == []


def test_tools_reasoning_margin_and_weight_are_kept(write) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    thought = {"role": "assistant", "reasoning_content": "because", "content": "x"}
    record = {
        "prompt": [user("q")],
        "chosen": [thought],
        "rejected": "y",
        "tools": json.dumps(tools),
        "margin": 0.5,
        "weight": 2,
    }
    (pair,), _, _ = read(write("t.jsonl", record))
    assert pair.tools == tuple(tools)
    assert pair.chosen == thought
    assert (pair.margin, pair.weight) == (0.5, 2.0)


def test_tools_of_the_system_turn_are_used_as_minimind_does(write) -> None:
    system = {"role": "system", "content": "s", "functions": '[{"name": "f"}]'}
    record = {side: [system, user("q"), answer(side)] for side in ("chosen", "rejected")}
    (pair,), _, _ = read(write("t.jsonl", record))
    assert pair.tools == ({"name": "f"},)


def test_tool_calls_need_no_content_and_parts_of_text_are_joined(write) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    record = {"prompt": [{"role": "user", "content": parts}], "chosen": call, "rejected": "y"}
    (pair,), problems, _ = read(write("t.jsonl", record))
    assert problems == []
    assert pair.prompt == (user("ab"),)
    assert pair.chosen == {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}


def test_byte_order_mark_crlf_and_blank_lines_are_fine_and_lines_are_counted(tmp_path) -> None:
    line = json.dumps(MINIMIND).encode()
    path = tmp_path / "w.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \n" + line)
    pairs, problems, _ = read(path)
    assert [pair.source for pair in pairs] == ["w.jsonl:1", "w.jsonl:4"]
    assert problems == []


def test_a_line_separator_inside_text_does_not_end_a_line(tmp_path) -> None:
    record = {"prompt": "a\u2028b", "chosen": "x\x85", "rejected": "y"}
    path = tmp_path / "u.jsonl"
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    (pair,), problems, _ = read(path)
    assert pair.prompt == "a\u2028b"
    assert problems == []


def test_a_json_list_gives_the_line_where_each_object_starts(tmp_path) -> None:
    path = tmp_path / "d.json"
    path.write_text("\ufeff" + json.dumps([MINIMIND, {}, MINIMIND], indent=1), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs, problems, _ = read(path)
    second = lines.index(" {},") + 1
    assert [pair.source for pair in pairs] == ["d.json:2", f"d.json:{second + 1}"]
    assert [problem.key for problem in problems] == [f"d.json:{second}"]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_may_hold_objects_one_after_another(tmp_path, indent) -> None:
    path = tmp_path / "d.json"
    path.write_text("\n".join(json.dumps(MINIMIND, indent=indent) for _ in range(2)))
    assert len(read(path)[0]) == 2


def test_gzip_and_zstandard_read_like_the_plain_file(tmp_path, write) -> None:
    zstandard = pytest.importorskip("zstandard")
    data = Path(write("d.jsonl", MINIMIND, MINIMIND)).read_bytes()
    (tmp_path / "g.jsonl.gz").write_bytes(gzip.compress(data))
    frames = zstandard.compress(data[:40]) + zstandard.compress(data[40:])
    (tmp_path / "z.jsonl.zst").write_bytes(frames)
    plain = [pair.prompt for pair in read(tmp_path / "d.jsonl")[0]]
    for name in ("g.jsonl.gz", "z.jsonl.zst"):
        pairs, problems, _ = read(tmp_path / name)
        assert [pair.prompt for pair in pairs] == plain
        assert problems == []


def test_parquet_rows_read_like_lines(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    thought = {"role": "assistant", "content": "x", "reasoning_content": "r"}
    rows = [{"chosen": [user("q"), thought], "rejected": [user("q"), answer("y")], "weight": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    (pair,), problems, _ = read(tmp_path / "d.parquet")
    assert problems == []
    assert pair == PreferencePair((user("q"),), thought, answer("y"), "d.parquet:1")


def test_globs_lists_and_names_give_every_file_once_in_order(tmp_path, write) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        write(name, MINIMIND)
    pairs, _, _ = read([str(tmp_path / "*.jsonl")])
    assert [pair.source for pair in pairs] == ["a.jsonl:1", "b.jsonl:1"]
    (tmp_path / "sub").mkdir()
    write("sub/a.jsonl", MINIMIND)
    names = [file.name for file in resolve_files([tmp_path / "a.jsonl", tmp_path / "sub/a.jsonl"])]
    assert names == [f"{tmp_path.name}/a.jsonl", "sub/a.jsonl"]


def test_hub_data_sets_are_read_by_name_configuration_and_split(monkeypatch) -> None:
    calls = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict[str, Any]]:
        calls.append((name, config, split))
        return [MINIMIND]

    module = types.ModuleType("datasets")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    pairs, _, _ = read(["hf:me/set", "hf:me/set:test", "hf:me/set:zh:test"])
    assert calls == [("me/set", None, "train"), ("me/set", None, "test"), ("me/set", "zh", "test")]
    assert pairs[1].source == "hf:me/set:test:1"


def test_a_hub_data_set_without_its_package_names_the_extra(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'minimind-dpo\[datasets\]'"):
        resolve_files("hf:me/set")


def test_bytes_are_counted_to_the_size_of_the_files(write) -> None:
    path = write("d.jsonl", MINIMIND, "", "oops", MINIMIND)
    counts: list[int] = []
    list(read_pairs(path, on_problem=lambda problem: None, on_bytes=counts.append))
    assert sum(counts) == Path(path).stat().st_size


def test_columns_that_mean_nothing_here_are_reported(write) -> None:
    _, _, (summary,) = read(write("d.jsonl", {**MINIMIND, "score": 1, "margin": None}))
    assert summary.ignored_columns == {"score"}
