"""From a preference pair to token ids: what is scored, and how it is cut to length.

Scored are the content and the end of the last assistant turn; `chat` says how text becomes prompt
and completions. They are encoded as parts: the prompt once, for both sides, exactly as generation
would see it, and each completion as what follows it. Special tokens are the template's alone; text
that spells one is encoded as the text it is.

Lengths, in tokens. Own limits first (prompt from the left, completions from the right). Then, if
the prompt and the longer completion exceed `max_length`, the prompt is cut from the left to
max(max_length - longer completion, max_length // 2), and completions from the right to what
remains. A cut completion gets no end token that its text does not reach.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from minimind_dpo.batch import PreferencePair, TokenizedPair
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.rendering import RenderedPair
from minimind_dpo.data.tokenize.special_tokens import EndlessError, RenderError
from minimind_dpo.options.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RULES = 2
"""Version of the rules above; raise it with every change that gives other ids."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised pair and what became of it on the way.

    Attributes:
        pair: The ids; its index is 0 until a token store gives it a row.
        prompt_cut: The prompt lost tokens from its left.
        chosen_cut: The chosen completion lost tokens, its end among them, from its right.
        rejected_cut: The rejected one did.
        texts: What the ids were encoded from.
    """

    pair: TokenizedPair
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool
    texts: RenderedPair


@dataclass(frozen=True, slots=True)
class Dropped:
    """A pair that cannot be trained on.

    Attributes:
        kind: `identical` (the same ids on both sides), `no_signal` (the same once cut to length)
            or `template` (it cannot be rendered, which is an error in the data).
        reason: The same as a sentence.
    """

    kind: str
    reason: str


def tokens_to_keep(
    options: DataOptions, prompt: int, chosen: int, rejected: int
) -> tuple[int, int, int]:
    """Tokens to keep of a prompt and two completions of these lengths."""
    prompt = min(prompt, options.max_prompt_length or prompt)
    chosen, rejected = (min(n, options.max_completion_length or n) for n in (chosen, rejected))
    prompt = min(prompt, max(options.max_length - max(chosen, rejected), options.max_length // 2))
    room = options.max_length - prompt
    return prompt, min(chosen, room), min(rejected, room)


class PairTokenizer:
    """Tokenises preference pairs by one set of rules.

    Args:
        tokenizer: A tokenizer of `transformers` with a Rust backend.
        options: Lengths and rendering; what else they hold is not read.

    Attributes:
        chat: Turns text into tokens; what samples and is exported takes the same one.
        options: As given.
        pad_id: Token to fill rectangles with.
        fingerprint: SHA-256 over rules, lengths, template and the tokenizer's content.

    Raises:
        ConfigError: Tokenizer, template or a value cannot be used; the message names the key.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None
    ) -> None:
        self.options = options or DataOptions()
        self.chat = Chat(tokenizer, self.options)
        pads = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(index for index in pads if index is not None)
        lengths = list(self.options.lengths.values())
        written = json.dumps([RULES, lengths, self.chat.rules], sort_keys=True, default=repr)
        self.fingerprint = hashlib.sha256(written.encode()).hexdigest()

    def tokenize(self, pair: PreferencePair) -> TokenizedPair | Dropped:
        """Tokenise one pair; `encode` does many, faster, and says what was cut."""
        (result,) = self.encode([pair])
        return result.pair if isinstance(result, Encoded) else result

    def encode(
        self,
        pairs: Sequence[PreferencePair],
        rendered: Sequence[RenderedPair | Dropped] | None = None,
    ) -> list[Encoded | Dropped]:
        """Tokenise pairs, in order. Safe to call from several threads at once.

        Args:
            pairs: The pairs.
            rendered: What `render` made of them, if that was done before.

        Raises:
            ConfigError: A pair has turns and there is no chat template to render them.
        """
        rendered = self.render(pairs) if rendered is None else rendered
        ids = iter(self.chat.encode([r for r in rendered if isinstance(r, RenderedPair)]))
        return [
            self._fit(pair, texts, next(ids)) if isinstance(texts, RenderedPair) else texts
            for pair, texts in zip(pairs, rendered, strict=True)
        ]

    def render(self, pairs: Sequence[PreferencePair]) -> list[RenderedPair | Dropped]:
        """Texts of pairs, in order; what the template fails on is dropped.

        Raises:
            ConfigError: A pair has turns and there is no chat template to render them.
            DataError: The template takes too long for one, as it may for each of those that follow.
        """
        return [self._render(pair) for pair in pairs]

    def _render(self, pair: PreferencePair) -> RenderedPair | Dropped:
        try:
            return self.chat.render(pair)
        except EndlessError as error:
            raise DataError([Problem(pair.source, str(error))]) from error
        except RenderError as error:
            return Dropped("template", str(error))

    def _fit(
        self, pair: PreferencePair, texts: RenderedPair, ids: list[np.ndarray]
    ) -> Encoded | Dropped:
        prompt, chosen, rejected = ids
        if not len(prompt):
            return Dropped("template", "has a prompt of no token, from which nothing is predicted")
        if np.array_equal(chosen, rejected):
            return Dropped("identical", "chosen and rejected are the same")
        keep_prompt, keep_chosen, keep_rejected = tokens_to_keep(self.options, *map(len, ids))
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
        return Encoded(fitted, *cut, texts)
