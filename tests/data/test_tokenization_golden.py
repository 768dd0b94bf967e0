"""Against the masks of MiniMind's own data sets: the same tokens scored, from ids alone.

The golden ids are those of whole conversations, cut on the right. Here they become turns again,
spelt with one private-use character an id, so that a tokenizer of characters gives back the ids
that the real one gave; template, headers and end-of-turn tokens are each generation's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from golden_support import numbers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minimind_dpo.batch import Message, PreferencePair, TokenizedPair
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer

MASKS = numbers("minimind/loss_masks")
INJECTED = "the user's turn spells a header, special tokens in the golden ids"
MERGED = "a leading space or newline is one token with the header's newline"
CUT = "too long: the golden ids lose the answer's end, here the prompt loses its beginning"
EXCEPTIONS = {
    **{("user_injects_header", name): INJECTED for name in MASKS["tokenizers"]},
    ("leading_newlines", "v_learn"): MERGED,
    ("leading_4_spaces_code", "v3"): MERGED,
    ("leading_4_spaces_code", "v3_think_removed"): MERGED,
    ("leading_4_spaces_code", "v2c"): MERGED,
    ("en_single", "v_learn"): CUT,
    ("truncated_inside_answer", "v_learn"): CUT,
    **{("truncated_before_answer", name): CUT for name in MASKS["tokenizers"]},
}
TEMPLATE = """\
{%- for m in messages -%}
<|im_start|>{{ headers[m.role] }}
{%- if m.role == 'assistant' and '</think>' not in m.content %}{{ block }}{% endif -%}
{{ m.content }}<|im_end|>{{ newline }}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>{{ headers['assistant'] }}{{ block }}{% endif -%}
"""


class Speller:
    """One generation's ids as characters, special tokens by their names."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.characters = [chr(0xE000 + i) for i in range(facts["vocabulary"])]
        self.characters[facts["newline"]] = "\n"
        self.names = {facts["start"]: "<|im_start|>", facts["end"]: "<|im_end|>"}
        if facts["think"]:
            self.names |= dict(zip(facts["think"], ("<think>", "</think>"), strict=True))
        vocabulary = {c: i for i, c in enumerate(self.characters) if i not in self.names}
        vocabulary |= {name: i for i, name in self.names.items()}
        core = Tokenizer(models.WordLevel(vocabulary, unk_token=self.characters[-1]))
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        core.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        core.add_tokens([*self.names.values()][2:])
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>")
        headers = {role: self.spelt(ids) for role, ids in facts["headers"].items()}
        block = "<think>\n\n</think>\n\n" if facts["think"] else ""
        self.options = {"headers": headers, "newline": "\n", "block": block}

    def spelt(self, ids: Sequence[int]) -> str:
        return "".join(self.names.get(i, self.characters[i]) for i in ids)

    def turns(self, ids: Sequence[int]) -> list[Message]:
        """The conversation behind these ids, without the empty think blocks of its template."""
        turns: list[Message] = []
        for part in self.spelt(ids).split("<|im_start|>")[1:]:
            roles = self.options["headers"].items()
            role, header = next((r, h) for r, h in roles if part.startswith(h))
            if part == header:  # the notebook's template opens one more answer
                continue
            content = part[len(header) :].removeprefix(self.options["block"])
            turns.append({"role": role, "content": content.partition("<|im_end|>")[0]})
        return turns


@cache
def speller(name: str) -> Speller:
    return Speller(MASKS["tokenizers"][name])


def tokenize(name: str, ids: Sequence[int], limit: int) -> TokenizedPair:
    spell = speller(name)
    rules = PairTokenizer(
        spell.tokenizer,
        DataOptions(
            max_length=limit,
            chat_template=TEMPLATE,
            template_options=spell.options,
            empty_think="remove" if "removed" in name else "keep",
        ),
    )
    turns = spell.turns(ids)
    while turns[-1]["role"] != "assistant":
        turns = turns[:-1]
    other: Message = {"role": "assistant", "content": spell.characters[-1] * 2}
    result = rules.tokenize(PreferencePair(tuple(turns[:-1]), turns[-1], other, "golden"))
    assert isinstance(result, TokenizedPair)
    return result


@pytest.mark.parametrize(
    ("name", "count"), [("v3", 9), ("v3_think_removed", 8), ("v2c", 9), ("v_learn", 7)]
)
def test_prompt_and_completion_are_parted_where_the_golden_mask_begins(
    name: str, count: int
) -> None:
    equal = 0
    for case in MASKS["cases"]:
        if case["tokenizer"] != name or (case["conversation"], name) in EXCEPTIONS:
            continue
        first, end = case["scored"]
        pair = tokenize(name, case["ids"], case["max_length"])
        assert pair.prompt_ids.tolist() == case["ids"][:first], case["conversation"]
        assert pair.chosen_ids.tolist() == case["ids"][first:end], case["conversation"]
        equal += 1
    assert equal == count
