"""The shipped assets are what their README claims, and `make` can make them again."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from minimind_dpo.batch import PreferencePair, TokenizedPair
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.demo import ASSETS, HELD_OUT, MODEL, PREFERENCES, QUESTIONS, TOKENIZER
from minimind_dpo.demo.evaluate import evaluate, held_out_prompts
from minimind_dpo.demo.judge import Verdict, judge
from minimind_dpo.demo.questions import question_of
from tools.demo.make import make, write_data
from tools.demo.sft import Recipe


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_assets_together_are_under_12_mb_and_the_model_under_10() -> None:
    assert sum(f.stat().st_size for f in ASSETS.rglob("*") if f.is_file()) < 12e6
    assert MODEL.stat().st_size < 10e6


@pytest.mark.parametrize(("path", "low", "high"), [(PREFERENCES, 1000, 2000), (HELD_OUT, 150, 300)])
def test_chosen_is_wanted_rejected_is_not_and_both_are_right(
    path: Path, low: int, high: int
) -> None:
    pairs = read(path)
    assert low <= len(pairs) <= high
    for pair in pairs:
        prompt = pair["chosen"][0]
        assert set(pair) == {"chosen", "rejected"}
        assert pair["rejected"][0] == prompt
        assert prompt["role"] == "user"
        for side, wanted in (("chosen", True), ("rejected", False)):
            _, answer = pair[side]
            assert answer["role"] == "assistant"
            assert judge(prompt["content"], answer["content"]) == Verdict(wanted, True)


def test_no_held_out_prompt_is_in_the_training_pairs() -> None:
    trained = {pair["chosen"][0]["content"] for pair in read(PREFERENCES)}
    held_out = held_out_prompts()
    assert len(held_out) == len(read(HELD_OUT))
    assert not trained & set(held_out)


@pytest.mark.parametrize("path", [PREFERENCES, HELD_OUT])
def test_at_least_four_in_ten_pairs_are_of_either_language(path: Path) -> None:
    prompts = [pair["chosen"][0]["content"] for pair in read(path)]
    english = sum(question_of(prompt).language == "en" for prompt in prompts) / len(prompts)
    assert 0.4 < english < 0.6


def test_the_model_file_is_a_native_third_generation_one() -> None:
    state = torch.load(MODEL, weights_only=True)
    assert {t.dtype for t in state.values()} == {torch.float16}
    embedding = state["model.embed_tokens.weight"]
    assert torch.equal(state["lm_head.weight"], embedding)
    layers = Recipe().num_layers
    block = re.compile(r"model\.layers\.\d+\.(\w+)\.?(\w*)\.weight")
    assert len([key for key in state if block.fullmatch(key)]) == 11 * layers
    assert len(state) == 11 * layers + 3
    assert state["model.layers.0.self_attn.q_proj.weight"].shape == (128, 128)
    assert state["model.layers.0.self_attn.k_proj.weight"].shape == (64, 128)
    assert state["model.layers.0.self_attn.q_norm.weight"].shape == (128 // 8,)
    assert state["model.layers.0.mlp.gate_proj.weight"].shape == (448, 128)  # 64 ceil(128 pi / 64)
    unique = sum(t.numel() for t in state.values()) - embedding.numel()
    assert 1_000_000 < unique < 5_000_000


def test_the_tokenizer_has_minimind_ids_and_writes_its_headers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<think>", "</think>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 21, 25, 26]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    header = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert text == header + "<|im_start|>assistant\n"
    for text in ("3加5等于8。 Ünïcode 🎉\n", "12 × 9 = 108"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_added_tokens_are_those_of_minimind_3() -> None:
    added = json.loads((TOKENIZER / "tokenizer.json").read_text())["added_tokens"]
    assert [token["id"] for token in added] == list(range(36))
    rows = json.dumps([(token["id"], token["content"], token["special"]) for token in added])
    # Of the same rows of minimind-3's tokenizer.json.
    assert hashlib.sha256(rows.encode()).hexdigest() == (
        "d3dfd9172c673dd7a715bf994b7b58db679269faf418279113542c1b8906e05e"
    )


def test_every_pair_is_parted_where_its_whole_text_is() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    rules = PairTokenizer(tokenizer, DataOptions(max_length=1000))
    for pair in read(PREFERENCES):
        *turns, chosen = pair["chosen"]
        parts = rules.tokenize(PreferencePair(tuple(turns), chosen, pair["rejected"][-1], "demo"))
        assert isinstance(parts, TokenizedPair)
        for side, ids in (("chosen", parts.chosen_ids), ("rejected", parts.rejected_ids)):
            whole = tokenizer.apply_chat_template(pair[side], tokenize=False)
            expected = tokenizer.encode(whole.removesuffix("\n"))
            assert [*parts.prompt_ids.tolist(), *ids.tolist()] == expected
            assert ids[-1] == tokenizer.eos_token_id


def test_the_model_answers_right_and_in_either_manner_half_the_time(
    shipped_demo: tuple[PreTrainedModel, Chat],
) -> None:
    model, chat = shipped_demo
    scores = evaluate(model, chat, held_out_prompts())
    assert 0.45 < scores.wanted < 0.55
    assert scores.correct > 0.9


def test_shipped_pairs_and_questions_are_what_make_writes(tmp_path: Path) -> None:
    write_data(tmp_path, Recipe())
    for path in (PREFERENCES, HELD_OUT, QUESTIONS):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.slow
def test_make_writes_the_same_bytes_twice(tmp_path: Path, toy_folder: Path, toy: Recipe) -> None:
    make(tmp_path, toy)
    first, second = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (toy_folder, tmp_path)
    )
    assert {"full_sft_32.pth", "preferences.jsonl", "heldout.jsonl", "questions.jsonl"} < set(first)
    assert [name for name in first if first[name] != second.get(name)] == []
    assert first.keys() == second.keys()
