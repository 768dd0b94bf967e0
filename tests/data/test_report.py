"""The data report counts what it says."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.store.report import print_report
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer


@pytest.fixture(scope="module")
def bytewise(make_tokenizer) -> PairTokenizer:
    """Two tokens of header each, one per byte of text: lengths can be counted by hand."""
    template = (
        "{% for m in messages %}<u>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<u>{% endif %}"
    )
    tokenizer = make_tokenizer(template, specials=("<|endoftext|>", "<|im_end|>", "<u>"))
    return PairTokenizer(tokenizer, max_length=12)


def test_every_number_by_hand(write, tmp_path, bytewise) -> None:
    def line(prompt: str, chosen: str, rejected: str, **extra: object) -> dict[str, object]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}

    path = write(
        "d.jsonl",
        line("q", "zz", "z"),  # 4 + 3, 4 + 2
        line("q", "zz", "z"),  # a duplicate
        line("q", "z", "zzz", score=1),  # 4 + 2, 4 + 4
        line("zqzqz", "z", "zzzzzzzzz"),  # 8 + 2, 8 + 10: prompt to 6, rejected to 6
        line("q", "z", "z"),  # identical
        line("q", "qzqzqzqzqz", "qzqzqzqzqq"),  # the same in the first 8 tokens
        {"chosen": 1},
    )
    store = prepare_store(path, bytewise, tmp_path, on_error="skip", progress=False)
    report = store.report
    assert store.lengths.tolist() == [[4, 3, 2], [4, 3, 2], [4, 2, 4], [6, 2, 6]]
    assert report["pairs"] == 4
    assert report["files"] == [
        {
            "name": "d.jsonl",
            "formats": {"prompt_text": 6},
            "pairs": 6,
            "skipped_lines": 1,
            "ignored_turns": 0,
            "ignored_columns": ["score"],
        }
    ]
    assert report["skipped_lines"] == 1
    assert report["dropped"] == {"identical": 1, "no_signal": 1, "template": 0}
    assert report["truncated"] == {"prompt": 1, "chosen": 0, "rejected": 1}
    assert report["duplicates"] == 1
    assert report["chosen_longer"] == 0.5
    assert report["same_length"] == 0.0
    assert report["tokens"]["chosen"] == {
        "min": 2,
        "median": 2,
        "p90": 3,
        "p99": 3,
        "max": 3,
        "mean": 2.5,
    }
    assert report["total_tokens"] == 13 + 13 + 14 + 20
    assert report["scored_tokens"] == 5 + 5 + 6 + 8
    assert report["padding_share"] == pytest.approx(1 - 60 / (8 * 12))
    assert report["largest_id"] == max(int(pair.prompt_ids.max()) for pair in store)
    assert json.loads(json.dumps(report)) == report


def test_the_printed_report_says_it_all(write, tmp_path, bytewise) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "z"}]
    chosen = {"chosen": [*turns, turns[0]], "rejected": [turns[0], {**turns[1], "content": "zz"}]}
    path = write("[b]d.jsonl", chosen, {"prompt": "q", "chosen": "z", "rejected": "z"}, "{")
    store = prepare_store(path, bytewise, tmp_path, on_error="skip", progress=False)
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(store.report, console, unused=store.unused)
    text = console.export_text()
    for expected in (
        "[b]d.jsonl: 2 pairs (minimind 1, prompt_text 1)",
        "1 lines with problems",
        "1 both sides the same",
        "1 after the last assistant turn",
        "0.0% of pairs",
        "median",
        str(store.unused),
    ):
        assert expected in text
    assert "warning" not in text
    listed = store.unused.read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in listed) == ["[b]d.jsonl:2", "[b]d.jsonl:3"]


def test_empty_answers_are_kept_counted_and_warned_of_by_line(write, tmp_path, bytewise) -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}]
    turn = {"role": "assistant", "content": ""}
    lines = [{"prompt": "q", "chosen": " \n", "rejected": "z" * n} for n in range(1, 6)]
    lines += [
        {"prompt": "q", "chosen": "z", "rejected": ""},
        {"prompt": "q", "chosen": "z", "rejected": turn},
        {"prompt": "q", "chosen": "zq", "rejected": {**turn, "tool_calls": calls}},
    ]
    store = prepare_store(write("d.jsonl", *lines), bytewise, tmp_path, progress=False)
    assert len(store) == 8
    assert store.report["empty"] == {"chosen": 5, "rejected": 2}
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(store.report, console, unused=store.unused)
    text = console.export_text()
    assert "5 chosen answers are empty: saying nothing is trained towards (d.jsonl:1, " in text
    assert "d.jsonl:3, ...)" in text
    assert "2 rejected answers are empty: saying nothing is trained away from (d.jsonl:6" in text
    assert str(store.unused) not in text  # nothing was left out
