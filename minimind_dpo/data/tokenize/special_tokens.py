"""Special tokens that are the template's own, told apart from text that spells one.

Before a conversation is printed, `SpecialText.protect` replaces what spells a special token in it
by a mark, one private-use character per token. After it is printed, `SpecialText.anchor` replaces
the special tokens that the template wrote by anchors, other private-use characters, and marks by
the text they stand for. `AnchoredEncoder` gives each anchor a token of its own in a copy of the
tokenizer, encodes with special tokens switched off, and maps the anchors' ids to the special
tokens'. So ids are those of ordinary encoding, save that no one's text can be a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHT = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)
"""An answer that begins with its reasoning: tag, reasoning, tag, and the rest."""

_FIRST_MARK, _FIRST_ANCHOR, _LAST = 0x100000, 0x108000, 0x10FFFD
_RESERVED = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_LAST)}]")
_MARK = re.compile(f"[{chr(_FIRST_MARK)}-{chr(_FIRST_ANCHOR - 1)}]")
_THINK_TAGS = ("<think>", "</think>")


class RenderError(ValueError):
    """A pair that the chat template cannot print as a prompt and two answers."""


class SpecialText:
    """Keeps text that spells special tokens apart from special tokens.

    Args:
        specials: Spellings of the special tokens; anchor i stands for `specials[i]`.
    """

    def __init__(self, specials: Sequence[str]) -> None:
        assert len(specials) < _FIRST_ANCHOR - _FIRST_MARK - len(_THINK_TAGS)
        self.anchors = tuple(chr(_FIRST_ANCHOR + i) for i in range(len(specials)))
        self._to_anchor = dict(zip(specials, self.anchors, strict=True))
        self._special = any_of(specials)
        spelt = list(dict.fromkeys([*specials, *_THINK_TAGS]))
        self._to_mark = {text: chr(_FIRST_MARK + i) for i, text in enumerate(spelt)}
        self._to_text = {mark: text for text, mark in self._to_mark.items()}
        self._spelt = any_of(spelt)

    def protect(self, text: str) -> str:
        """Replace what spells a special token, or a think tag, by marks."""
        if _RESERVED.search(text):
            raise RenderError(
                "has a character of the private-use plane 16 (U+100000 and up), which is reserved "
                "here to keep text and special tokens apart; remove it"
            )
        return self._spelt.sub(lambda match: self._to_mark[match[0]], text)

    def protect_answer(self, text: str) -> str:
        """Like `protect`, for an assistant turn: the tags of its own think block stay."""
        thought = THOUGHT.fullmatch(text)
        if thought is None:
            return self.protect(text)
        opening, reasoning, closing, rest = thought.groups()
        return opening + self.protect(reasoning) + closing + self.protect(rest)

    def anchor(self, rendered: str) -> str:
        """Turn the special tokens of rendered text into anchors, then marks into text."""
        anchored = self._special.sub(lambda match: self._to_anchor[match[0]], rendered)
        return _MARK.sub(lambda match: self._to_text[match[0]], anchored)


def any_of(spellings: Sequence[str]) -> re.Pattern[str]:
    """Pattern that matches any of these, the longest first; nothing where there is none."""
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class AnchoredEncoder:
    """Encodes anchored text with a copy of a tokenizer.

    Attributes:
        content: The tokenizer as JSON, without settings of a single call (truncation, padding).
        text: Tells special tokens and text apart.
        added_tokens: Spellings of all added tokens, special or not.
        opening: int32 (any length,), ids that the tokenizer itself puts before a text, as a
            beginning-of-text token.

    Raises:
        ValueError: If the tokenizer is not one of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.content = _content(tokenizer)
        start = Tokenizer.from_str(self.content)
        added = start.get_added_tokens_decoder()
        self._specials = [(i, token) for i, token in sorted(added.items()) if token.special]
        self.added_tokens = [token.content for token in added.values()]
        self.text = SpecialText([token.content for _, token in self._specials])
        self.opening = _opening(start)
        follow = json.dumps(_without_prefix(json.loads(self.content)), sort_keys=True)
        prefixes = follow != json.dumps(json.loads(self.content), sort_keys=True)
        self._follow = self._anchored(Tokenizer.from_str(follow)) if prefixes else None
        self._start = self._anchored(start)
        self._special_ids = self._anchors_to_specials()

    def _anchored(self, tokenizer: Tokenizer) -> Tokenizer:
        """Add a token for each anchor, which eats space around it as its special token does."""
        anchors = [
            AddedToken(anchor, lstrip=t.lstrip, rstrip=t.rstrip, normalized=False, special=False)
            for anchor, (_, t) in zip(self.text.anchors, self._specials, strict=True)
        ]
        tokenizer.add_tokens(anchors)
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _anchors_to_specials(self) -> np.ndarray:
        """Table of ids: an anchor's gives its special token's, any other itself."""
        vocabulary = self._start.get_vocab(with_added_tokens=True)
        anchor_ids = [vocabulary[anchor] for anchor in self.text.anchors]
        table = np.arange(max(vocabulary.values()) + 1, dtype=np.int32)
        table[anchor_ids] = [index for index, _ in self._specials]
        return table

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids, int32 (length,), of texts that stand at the beginning."""
        return self._encode(self._start, texts)

    def encode_continuations(self, before: Sequence[str], after: Sequence[str]) -> list[np.ndarray]:
        """Ids, int32 (length,), of each text of `after`, which follows its text of `before`.

        Tokenizers that put a space before a text do so at its beginning, and some after each
        special token; not in the middle of a line, which is where a completion may begin.
        """
        if self._follow is None:
            return self._encode(self._start, after)
        at_token = [text[-1:] in self.text.anchors for text in before]
        anchored = [b[-1] + a for a, b, here in zip(after, before, at_token, strict=True) if here]
        plain = [a for a, here in zip(after, at_token, strict=True) if not here]
        behind_token = iter(self._encode(self._start, anchored))
        inside = iter(self._encode(self._follow, plain))
        return [next(behind_token)[1:] if here else next(inside) for here in at_token]

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._special_ids[np.array(encoding.ids, np.int64)] for encoding in encodings]


def _content(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"model.tokenizer: {type(tokenizer).__name__} has no backend of the 'tokenizers' "
            "library (a tokenizer.json), which is needed to keep text and special tokens apart"
        )
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy.to_str()


def _opening(tokenizer: Tokenizer) -> np.ndarray:
    encoding = tokenizer.encode("x")
    count = next((i for i, is_added in enumerate(encoding.special_tokens_mask) if not is_added), 0)
    return np.array(encoding.ids[:count], np.int32)


def _without_prefix(part: Any) -> Any:
    """A tokenizer's JSON without the steps that put a space before a text."""
    if isinstance(part, list):
        return [_without_prefix(item) for item in part if not _is_prepend(item)]
    if not isinstance(part, dict):
        return part
    rest = {key: None if _is_prepend(item) else item for key, item in part.items()}
    steps = ("normalizer", "normalizers", "pre_tokenizer", "pretokenizers")
    rest |= {key: _without_prefix(rest[key]) for key in steps if rest.get(key) is not None}
    if part.get("type") == "Metaspace":
        rest["prepend_scheme"] = "never"
    if part.get("type") == "ByteLevel":
        rest["add_prefix_space"] = False
    return rest


def _is_prepend(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
