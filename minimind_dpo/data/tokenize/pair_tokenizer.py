"""From a preference pair to token ids: what is scored, and how it is cut to length.

Scored are the content and the end-of-turn token of the last assistant turn; `rendering` says how
text becomes prompt and completions. Here they are encoded as parts: the prompt once, for both
sides, exactly as generation would see it, and each completion as what follows it. Special tokens
are the template's alone; text that spells one is encoded as the text it is.

Lengths, in tokens. Own limits first (prompt from the left, completions from the right). Then, if
the prompt and the longer completion exceed `max_length`, the prompt is cut from the left to
max(max_length - longer completion, max_length // 2), and completions from the right to what
remains. A cut completion gets no end token that its text does not reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minimind_dpo.batch import Message, PreferencePair, TokenizedPair
from minimind_dpo.data.tokenize.chat import ChatRenderer, RenderedPair, RenderError, as_turns
from minimind_dpo.data.tokenize.special_tokens import AnchoredEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = 1
"""Version of the rules above; raise it with every change that gives other ids."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised pair and what became of it on the way.

    Attributes:
        pair: The ids; its index is 0 until a token store gives it a row.
        prompt_cut: The prompt lost tokens from its left.
        chosen_cut: The chosen completion lost tokens, its end among them, from its right.
        rejected_cut: The rejected one did.
        reasoning_lost: The template left out reasoning that the data has.
    """

    pair: TokenizedPair
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool
    reasoning_lost: bool


@dataclass(frozen=True, slots=True)
class Dropped:
    """A pair that cannot be trained on.

    Attributes:
        kind: `identical` (the same ids on both sides), `no_signal` (the same once cut to length)
            or `template` (the chat template cannot print it, which is an error in the data).
        reason: The same for people.
    """

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens; None for no limit of its own."""

    max_length: int = 1024
    max_prompt_length: int | None = None
    max_completion_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length", "max_completion_length"):
            value, least = getattr(self, name), 2 if name == "max_length" else 1
            if value is None and name != "max_length":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"data.{name} is {value!r}, not an integer of at least {least}")

    def kept(self, prompt: int, chosen: int, rejected: int) -> tuple[int, int, int]:
        """Tokens to keep of a prompt and two completions of these lengths."""
        prompt = min(prompt, self.max_prompt_length or prompt)
        chosen, rejected = (min(n, self.max_completion_length or n) for n in (chosen, rejected))
        longest = max(chosen, rejected)
        prompt = min(prompt, max(self.max_length - longest, self.max_length // 2))
        room = self.max_length - prompt
        return prompt, min(chosen, room), min(rejected, room)


class PairTokenizer:
    """Tokenises preference pairs by one set of rules.

    Args:
        tokenizer: A tokenizer of `transformers` with a Rust backend.
        max_length: Most tokens of prompt and either completion together.
        max_prompt_length: Most tokens of the prompt.
        max_completion_length: Most tokens of either completion.
        chat_template: `auto` for the tokenizer's own; `none` to join prompt, completion and
            end-of-text token as they are; else a template's text, or a file that holds it.
        empty_think: `keep` the empty think blocks of a template, or `remove` them.
        template_options: Further variables of the template, for example `enable_thinking`.

    Attributes:
        limits: The lengths.
        max_length: As given.
        pad_id: Token to fill rectangles with.
        fingerprint: SHA-256 over rules, lengths, template and the tokenizer's content.

    Raises:
        ValueError: Naming the key that cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 1024,
        max_prompt_length: int | None = None,
        max_completion_length: int | None = None,
        chat_template: str = "auto",
        empty_think: str = "keep",
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if empty_think not in ("keep", "remove"):
            raise ValueError(f"data.empty_think is {empty_think!r}; it is 'keep' or 'remove'")
        self.limits = Limits(max_length, max_prompt_length, max_completion_length)
        self.max_length = max_length
        template = _find_template(tokenizer, chat_template)
        self._encoder = AnchoredEncoder(tokenizer)
        self._eos = tokenizer.eos_token_id
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(index for index in pads if index is not None)
        self._renderer: ChatRenderer | None = None
        if template is not None:
            self._renderer = ChatRenderer(
                tokenizer,
                template,
                self._encoder.text,
                [*self._encoder.added_tokens, tokenizer.eos_token or ""],
                empty_think,
                template_options,
            )
        elif self._eos is None:
            raise ValueError(
                "data.chat_template=none ends answers with the tokenizer's end-of-text token, "
                "but this tokenizer has none; set its eos_token or give a template"
            )
        rules = {
            "rules": RULES,
            "limits": [max_length, max_prompt_length, max_completion_length],
            "template": template,
            "empty_think": empty_think,
            "options": dict(template_options or {}),
            "special": {str(k): str(v) for k, v in tokenizer.special_tokens_map.items()},
            "tokenizer": self._encoder.content,
        }
        written = json.dumps(rules, sort_keys=True, default=repr).encode()
        self.fingerprint = hashlib.sha256(written).hexdigest()

    def tokenize(self, pair: PreferencePair) -> TokenizedPair | Dropped:
        """Tokenise one pair; `encode` does many, faster, and says what was cut."""
        (result,) = self.encode([pair])
        return result.pair if isinstance(result, Encoded) else result

    def encode(self, pairs: Sequence[PreferencePair]) -> list[Encoded | Dropped]:
        """Tokenise pairs, in order. Safe to call from several threads at once."""
        rendered = [self._render(pair) for pair in pairs]
        prompts = [r for r in rendered if isinstance(r, RenderedPair)]
        ids = iter(self._encode_parts(prompts))
        results: list[Encoded | Dropped] = []
        for pair, texts in zip(pairs, rendered, strict=True):
            if isinstance(texts, RenderedPair):
                results.append(self._fit(pair, texts, next(ids)))
            else:
                results.append(texts)
        return results

    def encode_prompt(self, turns: Sequence[Message] | str, tools: Any = None) -> np.ndarray:
        """Token ids, int32 (length,), that an answer to these turns is generated from.

        Raises:
            ValueError: If the chat template refuses the turns.
        """
        prompt = turns if isinstance(turns, str) else tuple(turns)
        if self._renderer is not None:
            return self._encoder.encode([self._renderer.prompt(as_turns(prompt), tools)])[0]
        if not isinstance(prompt, str):
            raise ValueError("data.chat_template=none takes a prompt as text, not as turns")
        return np.concatenate([self._encoder.opening, self._encoder.encode([prompt])[0]])

    def _render(self, pair: PreferencePair) -> RenderedPair | Dropped:
        if self._renderer is not None:
            try:
                return self._renderer.pair(pair)
            except RenderError as error:
                return Dropped("template", str(error))
        sides = [s for s in (pair.prompt, pair.chosen, pair.rejected) if isinstance(s, str)]
        if pair.tools or len(sides) < 3:
            reason = "has turns or tools, which data.chat_template=none cannot print"
            return Dropped("template", reason)
        try:
            for side in sides:
                self._encoder.text.protect(side)
        except RenderError as error:
            return Dropped("template", str(error))
        prompt, chosen, rejected = sides
        return RenderedPair(prompt, chosen, rejected)

    def _encode_parts(self, rendered: Sequence[RenderedPair]) -> list[list[np.ndarray]]:
        """Ids of [prompt, chosen, rejected] of each pair."""
        prompts = self._encoder.encode([texts.prompt for texts in rendered])
        before = [texts.prompt for texts in rendered for _ in range(2)]
        after = [side for texts in rendered for side in (texts.chosen, texts.rejected)]
        sides = self._encoder.encode_continuations(before, after)
        if self._renderer is None:
            end = np.array([self._eos], np.int32)
            prompts = [np.concatenate([self._encoder.opening, ids]) for ids in prompts]
            sides = [np.concatenate([ids, end]) for ids in sides]
        return [list(parts) for parts in zip(prompts, sides[::2], sides[1::2], strict=True)]

    def _fit(
        self, pair: PreferencePair, texts: RenderedPair, ids: list[np.ndarray]
    ) -> Encoded | Dropped:
        prompt, chosen, rejected = ids
        if not len(prompt):
            return Dropped("template", "has a prompt of no token, from which nothing is predicted")
        if np.array_equal(chosen, rejected):
            return Dropped("identical", "chosen and rejected are the same")
        keep_prompt, keep_chosen, keep_rejected = self.limits.kept(*map(len, ids))
        fitted = TokenizedPair(
            prompt_ids=prompt[len(prompt) - keep_prompt :],
            chosen_ids=chosen[:keep_chosen],
            rejected_ids=rejected[:keep_rejected],
            index=0,
            source=pair.source,
            margin=pair.margin,
            weight=pair.weight,
        )
        if np.array_equal(fitted.chosen_ids, fitted.rejected_ids):
            reason = f"chosen and rejected are the same in their first {keep_chosen} tokens"
            return Dropped("no_signal", f"{reason}, all that the length limits leave")
        cut = (keep_prompt < len(prompt), keep_chosen < len(chosen), keep_rejected < len(rejected))
        return Encoded(fitted, *cut, texts.reasoning_lost)


def _find_template(tokenizer: PreTrainedTokenizerBase, wanted: str) -> str | None:
    """Text of the chat template, None where there shall be none."""
    if wanted == "none":
        return None
    if wanted == "auto":
        if not tokenizer.chat_template:
            raise ValueError(
                "data.chat_template=auto: the tokenizer has no chat template; give one (a file or "
                "its text), or set data.chat_template=none to join the texts as they are"
            )
        return tokenizer.get_chat_template()
    if "{{" in wanted or "{%" in wanted:
        return wanted
    if not Path(wanted).is_file():
        raise ValueError(
            f"data.chat_template={wanted}: no such file; it is 'auto', 'none', a file that holds a "
            "Jinja template, or such a template itself"
        )
    return Path(wanted).read_text(encoding="utf-8")
