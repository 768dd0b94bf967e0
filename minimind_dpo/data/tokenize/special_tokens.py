"""Special tokens that a chat template wrote, told apart from text that spells one.

1. Before a conversation is rendered, `SpecialTokens.escape` replaces what spells a special token in
   it by an escape, one private-use character per token: no text can open or close a turn.
2. After it is rendered, the special tokens that are left are the template's own.
   `SpecialTokens.place` replaces each by a placeholder, another private-use character, and then
   each escape by the text it stands for.
3. `TextEncoder` gives each placeholder a token of its own in a copy of the tokenizer, encodes with
   special tokens switched off, and maps the placeholders' ids to those of the special tokens.

So ids are those of ordinary encoding, save that no text becomes a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from minimind_dpo.options.problem import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

THOUGHT = re.compile(r"(\s*<think>)(.*?)(</think>)(.*)", re.DOTALL)
"""An answer that begins with its reasoning: tag, reasoning, tag, and the rest."""

_FIRST_ESCAPE, _FIRST_PLACEHOLDER, _LAST = 0x100000, 0x108000, 0x10FFFD
_RESERVED = re.compile(f"[{chr(_FIRST_ESCAPE)}-{chr(_LAST)}]")
_ESCAPE = re.compile(f"[{chr(_FIRST_ESCAPE)}-{chr(_FIRST_PLACEHOLDER - 1)}]")
_THINK_TAGS = ("<think>", "</think>")


class RenderError(ValueError):
    """A conversation that cannot become text; the message goes after `dpo.jsonl:17: `."""


class EndlessError(RenderError):
    """One that the chat template takes too long for."""


class SpecialTokens:
    """The special tokens of a tokenizer, and the characters that stand for them in a text.

    Args:
        added: (id, token) of all added tokens; placeholder i stands for the i-th special one.

    Attributes:
        special: (id, token) of those that are special, by id.
        spellings: Of all added tokens, special or not.
        placeholders: One character for each of `special`.
    """

    def __init__(self, added: Sequence[tuple[int, AddedToken]]) -> None:
        self.special = sorted((i, token) for i, token in added if token.special)
        self.spellings = [token.content for _, token in added]
        contents = [token.content for _, token in self.special]
        assert len(contents) < _FIRST_PLACEHOLDER - _FIRST_ESCAPE - len(_THINK_TAGS)
        self.placeholders = tuple(chr(_FIRST_PLACEHOLDER + i) for i in range(len(contents)))
        self._to_placeholder = dict(zip(contents, self.placeholders, strict=True))
        self._any_special = any_of(contents)
        escaped = list(dict.fromkeys([*contents, *_THINK_TAGS]))
        self._to_escape = {text: chr(_FIRST_ESCAPE + i) for i, text in enumerate(escaped)}
        self._to_text = {character: text for text, character in self._to_escape.items()}
        self._any_escaped = any_of(escaped)

    def escape(self, text: str) -> str:
        """Replace what spells a special token, or a think tag, by escapes.

        Raises:
            RenderError: The text has a character that escapes and placeholders are made of.
        """
        if _RESERVED.search(text):
            raise RenderError(
                "has a character of the private-use plane 16 (U+100000 and up), which is reserved "
                "here to keep text and special tokens apart; remove it"
            )
        return self._any_escaped.sub(lambda match: self._to_escape[match[0]], text)

    def escape_answer(self, text: str) -> str:
        """Like `escape`, for an assistant turn: the tags of its own think block stay."""
        thought = THOUGHT.fullmatch(text)
        if thought is None:
            return self.escape(text)
        opening, reasoning, closing, rest = thought.groups()
        return opening + self.escape(reasoning) + closing + self.escape(rest)

    def place(self, rendered: str) -> str:
        """Replace the special tokens of rendered text by placeholders, then escapes by text."""
        placed = self._any_special.sub(lambda match: self._to_placeholder[match[0]], rendered)
        return _ESCAPE.sub(lambda match: self._to_text[match[0]], placed)


def any_of(spellings: Sequence[str]) -> re.Pattern[str]:
    """Pattern that matches any of these, the longest first; nothing where there is none."""
    longest_first = sorted(filter(None, spellings), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def special_tokens_of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The special tokens of a tokenizer; errors as `TextEncoder`."""
    return SpecialTokens(list(_backend(tokenizer).get_added_tokens_decoder().items()))


class TextEncoder:
    """Encodes text with placeholders, by copies of a tokenizer.

    Args:
        tokenizer: With a Rust backend; left as it is.
        tokens: Its special tokens.

    Attributes:
        content: The tokenizer as JSON, without settings of a single call (truncation, padding).
        opening: int32 (any length,), ids that the tokenizer itself puts before a text, as a
            beginning-of-text token.

    Raises:
        ConfigError: If the tokenizer is not one of the `tokenizers` library.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens) -> None:
        self._tokens = tokens
        start = Tokenizer.from_str(_backend(tokenizer).to_str())
        start.no_truncation()
        start.no_padding()
        self.content = start.to_str()
        self.opening = _opening(start)
        plain = json.loads(self.content)
        unprefixed = _without_prefix(plain)
        self._start = self._with_placeholders(start)
        self._follow = self._start
        if unprefixed != plain:
            follow = Tokenizer.from_str(json.dumps(unprefixed))
            self._follow = self._with_placeholders(follow)
        self._special_ids = self._placeholders_to_specials()

    def _with_placeholders(self, tokenizer: Tokenizer) -> Tokenizer:
        """Add a token for each placeholder, which eats space around it as its special token."""
        tokenizer.add_tokens(
            [
                AddedToken(c, lstrip=t.lstrip, rstrip=t.rstrip, normalized=False, special=False)
                for c, (_, t) in zip(self._tokens.placeholders, self._tokens.special, strict=True)
            ]
        )
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _placeholders_to_specials(self) -> np.ndarray:
        """Table of ids: a placeholder's gives its special token's, any other itself."""
        vocabulary = self._start.get_vocab(with_added_tokens=True)
        table = np.arange(max(vocabulary.values()) + 1, dtype=np.int32)
        placeholder_ids = [vocabulary[character] for character in self._tokens.placeholders]
        table[placeholder_ids] = [index for index, _ in self._tokens.special]
        return table

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids, int32 (length,), of texts that stand at the beginning."""
        return self._encode(self._start, texts)

    def encode_continuations(self, before: Sequence[str], after: Sequence[str]) -> list[np.ndarray]:
        """Ids, int32 (length,), of each text of `after`, which follows its text of `before`.

        Tokenizers that put a space before a text do so at its beginning, and some after each
        special token; not in the middle of a line, which is where a completion may begin.
        """
        if self._follow is self._start:
            return self._encode(self._start, after)
        at_token = [text[-1:] in self._tokens.placeholders for text in before]
        joined = [b[-1] + a for a, b, here in zip(after, before, at_token, strict=True) if here]
        inside = [a for a, here in zip(after, at_token, strict=True) if not here]
        behind_token = iter(self._encode(self._start, joined))
        in_line = iter(self._encode(self._follow, inside))
        return [next(behind_token)[1:] if here else next(in_line) for here in at_token]

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [self._special_ids[np.array(encoding.ids, np.int64)] for encoding in encodings]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        why = (
            f"{type(tokenizer).__name__} has no backend of the 'tokenizers' library (a "
            "tokenizer.json), which is needed to keep text and special tokens apart"
        )
        raise ConfigError([Problem("model.tokenizer", why)])
    return backend


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
