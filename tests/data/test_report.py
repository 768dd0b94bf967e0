"""The data report counts what it says."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.report import print_data_report
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer

BYTEWISE = {"max_length": 12, "text_as_turns": True}


@pytest.fixture(scope="module")
def bytewise(make_tokenizer) -> PreTrainedTokenizerFast:
    """Two tokens of header each, one per byte of text: lengths can be counted by hand."""
    template = (
        "{% for m in messages %}<u>{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<u>{% endif %}"
    )
    return make_tokenizer(template, specials=("<|endoftext|>", "<|im_end|>", "<u>"))


def line(prompt: str, chosen: str, rejected: str, **extra: object) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **extra}


def printed(data: PreferenceDataModule) -> str:
    data.prepare_data()
    console = Console(width=200, record=True, file=io.StringIO())
    print_data_report(data, console)
    return console.export_text()


@pytest.fixture
def module(bytewise, tmp_path):
    def make(train: str, val: str | None = None, **options: object) -> PreferenceDataModule:
        cache = str(tmp_path / "cache")
        asked = {**BYTEWISE, "train": train, "val": val, "cache_dir": cache, **options}
        return PreferenceDataModule(bytewise, DataOptions(**asked), progress=False)

    return make


def test_every_number_by_hand(write, tmp_path, bytewise) -> None:
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
    options = DataOptions(**BYTEWISE, cache_dir=str(tmp_path), on_error="skip")  # type: ignore[arg-type]
    rules = PairTokenizer(bytewise, options)
    store = prepare_store(path, rules, options, progress=False)
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


def test_the_printed_report_says_it_all(write, module) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "z"}]
    chosen = {"chosen": [*turns, turns[0]], "rejected": [turns[0], {**turns[1], "content": "zz"}]}
    path = write("[b]d.jsonl", chosen, {"prompt": "q", "chosen": "z", "rejected": "z"}, "{")
    data = module(path, on_error="skip")
    text = printed(data)
    store = data.train_store
    for expected in (
        "[b]d.jsonl: 2 pairs (minimind 1, prompt_text 1)",
        "1 line with problems",
        "1 both sides the same",
        "1 after the last assistant turn",
        "0.0% of pairs",
        "median",
        str(store.unused),
    ):
        assert expected in text
    assert "warning" not in text
    assert "padding" not in text
    listed = store.unused.read_text().splitlines()
    assert sorted(line.split(": ")[0] for line in listed) == ["[b]d.jsonl:2", "[b]d.jsonl:3"]


def test_empty_answers_are_kept_counted_and_warned_of_by_line(write, module) -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}]
    turn = {"role": "assistant", "content": ""}
    lines = [{"prompt": "q", "chosen": " \n", "rejected": "z" * n} for n in range(1, 6)]
    lines += [
        {"prompt": "q", "chosen": "z", "rejected": ""},
        {"prompt": "q", "chosen": "z", "rejected": turn},
        {"prompt": "q", "chosen": "zq", "rejected": {**turn, "tool_calls": calls}},
    ]
    data = module(write("d.jsonl", *lines))
    text = printed(data)
    store = data.train_store
    assert len(store) == 8
    assert store.report["empty"] == {"chosen": 5, "rejected": 2}
    assert "5 chosen answers are empty: saying nothing is trained towards (d.jsonl:1, " in text
    assert "d.jsonl:3, ...)" in text
    assert "2 rejected answers are empty: saying nothing is trained away from (d.jsonl:6" in text
    assert str(store.unused) not in text  # nothing was left out


def test_the_split_is_shown_and_that_there_is_none(write, module) -> None:
    lines = [line(f"{n}", "z", "zz") for n in range(10)]
    path = write("d.jsonl", *lines)
    assert "8 pairs for training, 2 for validation (split off by prompt)" in printed(module(path))
    text = printed(module(path, val_fraction=0))
    assert "10 pairs for training, no validation (data.val_fraction=0; data.val names" in text
    text = printed(module(write("few.jsonl", *lines[:3])))
    assert "3 pairs for training, no validation (too few prompts to split any off;" in text
    text = printed(module(path, write("v.jsonl", line("other", "z", "zz"))))
    assert "10 pairs for training, 1 for validation (from data.val)" in text
    assert "Validation data" in text
    assert "warning" not in text


def test_validation_pairs_that_are_trained_on_are_warned_of_whatever_the_file(
    write, module
) -> None:
    train = write("d.jsonl", *(line(f"{n}", "z", "zz") for n in range(9)))
    turns = [{"role": "user", "content": "3"}]
    copied = line("2", "z", "zz"), {**line("", "z", "zz"), "prompt": turns}
    val = write("v.jsonl", line("a", "z", "zz"), *copied, line("4", "z", "q"))
    text = printed(module(train, val))
    assert "2 of 4 validation pairs stand in the training data as well (v.jsonl:2 first)" in text
    assert "1 of 4 validation pairs share their prompt with a training pair" in text
    assert "warning" not in printed(module(train, write("w.jsonl", line("a", "z", "zz"))))


def test_sides_that_are_cut_in_most_pairs_are_warned_of_with_the_key(write, module) -> None:
    lines = [line("zqzqz", "z", "zzzzzzzzz"), line("qzqzq", "z", "qqqqqqqqq"), line("q", "z", "q")]
    text = printed(module(write("d.jsonl", *lines)))
    sides = "2 prompts (their beginning), 2 rejected answers (their end)"
    assert f"of 3 pairs are cut: {sides}. Raise data.max_length from 12" in text
    assert "warning" not in printed(module(write("e.jsonl", lines[0], *[lines[2]] * 3)))


def test_padding_is_told_of_the_padded_layout_alone(write, module) -> None:
    path = write("d.jsonl", line("q", "zz", "z"), line("q", "z", "zzz"))
    text = printed(module(path, layout="padded"))
    assert "43.8% of a rectangle of 12" in text  # 27 of 4 x 12 tokens
    assert "rectangle" not in printed(module(path))
