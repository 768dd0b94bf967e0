"""With MiniMind's published tokenizers and its own texts: the same ids, the same tokens scored.

`conftest` collects this file only where `MINIMIND_DPO_SHARED` names a folder that holds both; what
can be said in ids alone, `test_tokenization_golden` says everywhere.

The golden text was encoded whole and cut on the right; here prompt and completion are encoded as
parts and the prompt is cut on the left. Where the two cannot agree is listed below with the reason;
everywhere else ids and mask are equal.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from published import SHARED
from published import TOKENIZERS as PUBLISHED
from transformers import AutoTokenizer

from minimind_dpo.batch import PreferencePair, TokenizedPair
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.models.tokenizers import end_of_turn_id

pytestmark = pytest.mark.skipif(not PUBLISHED, reason=f"no tokenizers in {SHARED}")

TOKENIZERS = {
    "v3": "minimind-3",
    "v3_think_removed": "minimind-3",
    "v2c": "minimind2",
    "v_learn": "minimind-v-learn",
}
INJECTED = "the user spells a header: special tokens in the golden text, plain text here"
MERGED = "leading space or newlines merge with the header's newline across the boundary"
CUT = "too long: the golden text loses its answer's end, here the prompt loses its beginning"
EXCEPTIONS = {
    **{("user_injects_header", name): INJECTED for name in TOKENIZERS},
    ("leading_newlines", "v_learn"): MERGED,
    ("leading_4_spaces_code", "v3"): MERGED,
    ("leading_4_spaces_code", "v3_think_removed"): MERGED,
    ("leading_4_spaces_code", "v2c"): MERGED,
    ("en_single", "v_learn"): CUT,
    ("truncated_inside_answer", "v_learn"): CUT,
    **{("truncated_before_answer", name): CUT for name in TOKENIZERS},
}


def golden_cases() -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    golden = json.loads((SHARED / "golden/minimind/loss_masks.json").read_text(encoding="utf-8"))
    return [(c, name, c["cases"][name]) for c in golden["conversations"] for name in c["cases"]]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    loaded = {
        n: AutoTokenizer.from_pretrained(SHARED / "tokenizers" / n) for n in TOKENIZERS.values()
    }
    return {name: loaded[folder] for name, folder in TOKENIZERS.items()}


@functools.cache
def rules_of(tokenizer: Any, limit: int, empty_think: str) -> PairTokenizer:
    return PairTokenizer(tokenizer, DataOptions(max_length=limit, empty_think=empty_think))


def tokenize(tokenizer: Any, name: str, conversation: dict[str, Any], limit: int) -> TokenizedPair:
    turns = conversation["messages"]
    while turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    rules = rules_of(tokenizer, limit, "remove" if "removed" in name else "keep")
    other = {"role": "assistant", "content": "zz"}
    result = rules.tokenize(PreferencePair(tuple(turns[:-1]), turns[-1], other, "golden"))
    assert isinstance(result, TokenizedPair)
    return result


def test_ids_and_mask_equal_the_golden_ones(tokenizers) -> None:
    equal = 0
    for conversation, name, case in golden_cases():
        key = (conversation["name"], name)
        mask = case["masks"]["proposed_last_turn"]
        scored = [i for i, scores in zip(case["ids"], mask, strict=True) if scores == "1"]
        before = case["ids"][: mask.find("1")]
        result = tokenize(tokenizers[name], name, conversation, conversation["max_length"])
        same = (result.prompt_ids.tolist(), result.chosen_ids.tolist()) == (before, scored)
        assert same == (key not in EXCEPTIONS), key
        equal += same
    assert equal == 33
    assert len(EXCEPTIONS) == 14


def test_the_exceptions_score_exactly_the_printed_answer(tokenizers) -> None:
    for conversation, name, case in golden_cases():
        reason = EXCEPTIONS.get((conversation["name"], name))
        if reason is None:
            continue
        tokenizer = tokenizers[name]
        header = "<|im_start|>assistant\n"
        header += "<think>\n\n</think>\n\n" if name == "v3" else ""
        prompt, printed = case["rendered"].rsplit(header, 1)
        expected = printed.removesuffix("\n")
        limit = conversation["max_length"]
        result = tokenize(tokenizer, name, conversation, limit)
        assert result.prompt_ids.tolist()[-3:] == tokenizer.encode(header)[-3:]
        if reason is not CUT:
            assert tokenizer.decode(result.prompt_ids) == prompt + header
            assert tokenizer.decode(result.chosen_ids) == expected
            continue
        assert len(result.prompt_ids) + len(result.chosen_ids) <= limit
        whole = tokenize(tokenizer, name, conversation, 10_000)
        assert tokenizer.decode(whole.chosen_ids) == expected
        kept = len(result.chosen_ids)
        assert result.chosen_ids.tolist() == whole.chosen_ids.tolist()[:kept]
        kept = len(result.prompt_ids)
        assert result.prompt_ids.tolist() == whole.prompt_ids.tolist()[-kept:]


def test_an_injected_header_is_not_a_special_token(tokenizers) -> None:
    for conversation, name, case in golden_cases():
        if conversation["name"] != "user_injects_header":
            continue
        tokenizer = tokenizers[name]
        start, end = (tokenizer.convert_tokens_to_ids(f"<|im_{t}|>") for t in ("start", "end"))
        ours = tokenize(tokenizer, name, conversation, 96).prompt_ids.tolist()
        injected = case["ids"][: case["masks"]["proposed_last_turn"].find("1")]
        assert ours.count(start) == injected.count(start) - 1
        assert ours.count(end) == injected.count(end) - 1


@pytest.mark.parametrize("name", ["v3", "v2c", "v_learn"])
def test_real_pairs_split_where_the_whole_text_does(tokenizers, name) -> None:
    tokenizer = tokenizers[name]
    rules = PairTokenizer(tokenizer, DataOptions(max_length=100_000))
    for language in ("zh", "en"):
        text = (SHARED / f"data/dpo_{language}.jsonl").read_text(encoding="utf-8")
        for line in text.split("\n")[:8]:
            record = json.loads(line)
            *turns, chosen = record["chosen"]
            result = rules.tokenize(
                PreferencePair(tuple(turns), chosen, record["rejected"][-1], "golden")
            )
            assert isinstance(result, TokenizedPair)
            whole = tokenizer.apply_chat_template(record["chosen"], tokenize=False)
            ids = [*result.prompt_ids.tolist(), *result.chosen_ids.tolist()]
            assert ids == tokenizer.encode(whole.removesuffix("\n"))
            assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["v3", "v2c", "v_learn"])
def test_the_end_of_a_turn_is_the_one_that_loading_a_model_finds(tokenizers, name) -> None:
    """`models` reads it off the template's text, `Chat` off a rendered answer."""
    assert Chat(tokenizers[name]).end_ids == [end_of_turn_id(tokenizers[name])]


def test_minimind_3_opens_a_thought_where_that_is_asked_for(tokenizers) -> None:
    tokenizer = tokenizers["v3"]
    rules = PairTokenizer(tokenizer, DataOptions(template_options={"open_thinking": True}))
    turns = ({"role": "user", "content": "Hello"},)
    thought = {"role": "assistant", "content": "x", "reasoning_content": "because"}
    result = rules.tokenize(PreferencePair(turns, thought, "y", "d.jsonl:1"))
    assert isinstance(result, TokenizedPair)
    header = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert tokenizer.decode(result.prompt_ids) == header
    assert rules.chat.encode_prompt(turns) == result.prompt_ids.tolist()
    assert tokenizer.decode(result.chosen_ids) == "because\n</think>\n\nx<|im_end|>"
    assert tokenizer.decode(result.rejected_ids) == "\n</think>\n\ny<|im_end|>"
