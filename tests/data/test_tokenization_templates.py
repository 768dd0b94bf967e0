"""Chat templates of the common families, in small."""

from __future__ import annotations

from typing import Any

import pytest

from minimind_dpo.batch import PreferencePair, TokenizedPair
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.tokenize.pair_tokenizer import Dropped, Encoded, PairTokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% set content = m.content %}"
    "{% if m.reasoning_content %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if OPENED %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN3 = THINKING.replace("OPENED", "enable_thinking is defined and not enable_thinking")
MINIMIND3 = THINKING.replace("OPENED", "true")
EMPTY = "<think>\n\n</think>\n\n"
HEADER = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
THOUGHT = "<think>\nbecause\n</think>\n\nx"


def texts(tokenizer: Any, result: TokenizedPair | Dropped) -> tuple[str, str, str]:
    assert isinstance(result, TokenizedPair), result
    parts = (result.prompt_ids, result.chosen_ids, result.rejected_ids)
    prompt, chosen, rejected = (tokenizer.decode(ids) for ids in parts)
    return prompt, chosen, rejected


def pair(chosen: Any, rejected: Any = "y", prompt: Any = "q") -> PreferencePair:
    turns = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    return PreferencePair(turns, chosen, rejected, "d.jsonl:1")


@pytest.mark.parametrize(
    ("template", "specials", "expected"),
    [
        (
            LLAMA3,
            ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            (
                "<s><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n",
                "x<|eot_id|>",
                "y<|eot_id|>",
            ),
        ),
        (
            GEMMA,
            ("<s>", "<start_of_turn>", "<end_of_turn>"),
            (
                "<s><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n",
                "x<end_of_turn>",
                "y<end_of_turn>",
            ),
        ),
        (MISTRAL, ("<s>", "</s>"), ("<s>[INST] q [/INST]", " x</s>", " y</s>")),
    ],
)
def test_families_split_at_the_answer(make_tokenizer, template, specials, expected) -> None:
    tokenizer = make_tokenizer(template, specials=("<pad>", *specials), eos=specials[-1])
    tokenizer.bos_token = "<s>"
    assert texts(tokenizer, PairTokenizer(tokenizer).tokenize(pair("x"))) == expected


def test_a_template_that_strips_content_scores_what_it_prints(make_tokenizer) -> None:
    specials = ("<s>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = make_tokenizer(GEMMA, specials=specials, eos="<end_of_turn>")
    tokenizer.bos_token = "<s>"
    result = PairTokenizer(tokenizer).tokenize(pair("  x \n", "\ny"))
    assert texts(tokenizer, result)[1:] == ("x<end_of_turn>", "y<end_of_turn>")


def test_what_the_template_refuses_is_told_in_its_words(make_tokenizer) -> None:
    specials = ("<s>", "<start_of_turn>", "<end_of_turn>")
    tokenizer = make_tokenizer(GEMMA, specials=specials, eos="<end_of_turn>")
    tokenizer.bos_token = "<s>"
    turns = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
    result = PairTokenizer(tokenizer).tokenize(pair("x", prompt=turns))
    assert isinstance(result, Dropped)
    assert result.kind == "template"
    assert "System role not supported" in result.reason


def test_text_after_the_end_token_is_not_scored(make_tokenizer) -> None:
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% else %}<|endoftext|>{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    result = PairTokenizer(tokenizer).tokenize(pair("x"))
    assert texts(tokenizer, result) == (
        "<user>q<|im_end|>\n<assistant>",
        "x<|im_end|>",
        "y<|im_end|>",
    )


@pytest.mark.parametrize("template", [QWEN3, MINIMIND3])
def test_empty_think_blocks_of_both_sides_belong_to_the_prompt(make_tokenizer, template) -> None:
    tokenizer = make_tokenizer(template)
    result = PairTokenizer(tokenizer).tokenize(pair("x"))
    assert texts(tokenizer, result) == (HEADER + EMPTY, "x<|im_end|>", "y<|im_end|>")
    removed = PairTokenizer(tokenizer, DataOptions(empty_think="remove")).tokenize(pair("x"))
    assert texts(tokenizer, removed) == (HEADER, "x<|im_end|>", "y<|im_end|>")


@pytest.mark.parametrize("template", [QWEN3, MINIMIND3])
@pytest.mark.parametrize("empty_think", ["keep", "remove"])
@pytest.mark.parametrize(
    "answer",
    [THOUGHT, {"role": "assistant", "content": "x", "reasoning_content": "because"}],
)
def test_real_reasoning_on_one_side_leaves_both_blocks_in_the_completions(
    make_tokenizer, template, empty_think, answer
) -> None:
    tokenizer = make_tokenizer(template)
    tok = PairTokenizer(tokenizer, DataOptions(empty_think=empty_think))
    expected = (HEADER, f"{THOUGHT}<|im_end|>", f"{EMPTY}y<|im_end|>")
    assert texts(tokenizer, tok.tokenize(pair(answer))) == expected
    swapped = (expected[0], expected[2], expected[1])
    assert texts(tokenizer, tok.tokenize(pair("y", answer))) == swapped


def test_options_reach_the_template(make_tokenizer) -> None:
    tokenizer = make_tokenizer(QWEN3)
    tok = PairTokenizer(tokenizer, DataOptions(template_options={"enable_thinking": False}))
    assert texts(tokenizer, tok.tokenize(pair("x")))[0] == HEADER + EMPTY
    ids = tok.chat.encode_prompt([{"role": "user", "content": "q"}])
    assert tokenizer.decode(ids) == HEADER + EMPTY


def test_a_header_that_opens_a_thought_is_followed_by_the_answers_own(make_tokenizer) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    tokenizer = make_tokenizer(template)
    tok = PairTokenizer(tokenizer)
    result = texts(tokenizer, tok.tokenize(pair(THOUGHT)))
    assert result == (HEADER, f"{THOUGHT}<|im_end|>", "y<|im_end|>")


def test_reasoning_that_a_template_leaves_out_is_flagged(tokenizer) -> None:
    answer = {"role": "assistant", "content": "x", "reasoning_content": "because"}
    for side, lost in ((answer, True), ("x", False), (THOUGHT, False)):
        (result,) = PairTokenizer(tokenizer).encode([pair(side)])
        assert isinstance(result, Encoded)
        assert result.texts.reasoning_lost is lost


def test_the_users_think_tags_are_never_taken_for_the_templates(make_tokenizer) -> None:
    tokenizer = make_tokenizer(MINIMIND3)
    tok = PairTokenizer(tokenizer, DataOptions(empty_think="remove"))
    prompt = texts(tokenizer, tok.tokenize(pair("x", prompt=f"say {EMPTY}")))[0]
    assert prompt == HEADER.replace("user\nq", f"user\nsay {EMPTY}")


def test_a_template_that_rewrites_the_prompt_is_told(make_tokenizer) -> None:
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    result = PairTokenizer(make_tokenizer(template)).tokenize(pair("x"))
    assert isinstance(result, Dropped)
    assert "does not begin with its prompt" in result.reason
