"""A tokenizer as llama.cpp reads it: tokens, kinds, merges, and which rule splits text first.

Byte-level BPE alone, whose first splitting is one that llama.cpp has: with another rule the same
text would become other tokens, and that would not be seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from minimind_dpo.models.errors import CheckpointError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as the format numbers them."""

_QWEN2: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What the file holds of a tokenizer.

    Attributes:
        tokens: By id; rows of the embedding that no token has are named `[PAD7]`.
        kinds: Of each token.
        merges: `a b`, the first ones first.
        splitting: llama.cpp's name of the rule that splits text before merges.
        bos: Token that begins a text; None for none.
        eos: Token that ends a text or a turn; None for none.
        eot: Token that ends a turn where `eos` does not.
        pad: Token of padding; None for none.
        adds_bos: Whether encoding begins with `bos`.
        chat_template: Jinja; None for none.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    splitting: str
    bos: int | None
    eos: int | None
    eot: int | None
    pad: int | None
    adds_bos: bool
    chat_template: str | None


def vocabulary_of(
    tokenizer: PreTrainedTokenizerBase, rows: int, end_ids: Sequence[int]
) -> Vocabulary:
    """A tokenizer's vocabulary.

    Args:
        tokenizer: With a Rust backend.
        rows: Of the model's embedding.
        end_ids: Tokens that end an answer.

    Raises:
        CheckpointError: llama.cpp has no tokenizer like it.
    """
    backend: Any = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    splitting = _splitting(content)
    tokens = [f"[PAD{row}]" for row in range(rows)]
    kinds = [UNUSED] * rows
    for token, row in content["model"]["vocab"].items():
        tokens[row], kinds[row] = token, NORMAL
    for added in content["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [
        each if isinstance(each, str) else " ".join(each) for each in content["model"]["merges"]
    ]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return Vocabulary(
        tokens,
        kinds,
        merges,
        splitting,
        bos,
        eos,
        next((end for end in end_ids if end != eos), None),
        tokenizer.pad_token_id,
        bos is not None and tokenizer("a")["input_ids"][:1] == [bos],
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None,
    )


def _splitting(content: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer splits text, of `tokenizer.json`'s content."""
    model, normalizer = content["model"], content["normalizer"]
    if model["type"] != "BPE" or model.get("byte_fallback"):
        raise _no_like(f"its kind is {model['type']}, and byte-level BPE alone can be written")
    splits = _splits(content["pre_tokenizer"])
    rules = {
        ("ByteLevel",): "gpt-2",
        ("Digits", "ByteLevel"): "smollm",
        (_QWEN2, "bytes"): "qwen2",
        (_LLAMA3, "bytes"): "llama-bpe",
    }
    rule = rules.get(splits)
    if rule is None:
        raise _no_like(f"its pre_tokenizer ({', '.join(splits)}) is none that is known here")
    if normalizer is not None and (rule != "qwen2" or normalizer["type"] != "NFC"):
        raise _no_like(f"its normalizer ({normalizer['type']}) changes text before that")
    if bool(model.get("ignore_merges")) != (rule == "llama-bpe"):
        raise _no_like(f"ignore_merges={model.get('ignore_merges')} is not what {rule} does")
    return rule


def _splits(node: dict[str, Any] | None) -> tuple[str, ...]:
    """The steps of a pre-tokenizer in a few words; of a splitting by a pattern, the pattern."""
    if node is None:
        return ("none",)
    if node["type"] == "Sequence":
        return tuple(step for inner in node["pretokenizers"] for step in _splits(inner))
    if node["type"] == "ByteLevel" and not node["add_prefix_space"]:
        return ("ByteLevel" if node.get("use_regex", True) else "bytes",)
    if node["type"] == "Digits" and node["individual_digits"]:
        return ("Digits",)
    isolated = node["type"] == "Split" and node["behavior"] == "Isolated" and not node["invert"]
    return (str(node["pattern"].get("Regex")) if isolated else json.dumps(node),)


def _no_like(why: str) -> CheckpointError:
    return CheckpointError(
        f"format=gguf: llama.cpp would split text in another way than this tokenizer: {why}. Use "
        "format=hf or native"
    )
