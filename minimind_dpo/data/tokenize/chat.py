"""`Chat`: how prompts and pairs become tokens, for training data, samples, judges and export.

Turns are rendered by the chat template (`rendering`). Plain text stays plain: prompt, answer and
the end-of-text token are joined as they are. A base model, whose tokenizer has no template, so
trains on plain text and samples from it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.options import DataOptions, check_data
from minimind_dpo.data.tokenize.rendering import RenderedPair, Renderer, as_turns
from minimind_dpo.data.tokenize.special_tokens import (
    RenderError,
    TextEncoder,
    special_tokens_of,
)
from minimind_dpo.data.tokenize.template import ChatTemplate, find_template
from minimind_dpo.options.problem import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chat:
    """Renders and encodes with one tokenizer, and one chat template or none.

    Args:
        tokenizer: A tokenizer of `transformers` with a Rust backend; left as it is.
        options: `chat_template` (as `find_template` takes it), `template_options`, `empty_think`
            and `text_as_turns` are read.

    Attributes:
        tokenizer: The tokenizer, whose own template is the one in use; this one is exported.
        end_ids: Tokens that end an answer: the end of a turn, and of a text.

    Raises:
        ConfigError: Tokenizer, template or options cannot be used; the message names the key.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, options: DataOptions | None = None
    ) -> None:
        options = options or DataOptions()
        check_data(options)
        self._options = options
        text = find_template(tokenizer, options.chat_template)
        self._template = text
        self.tokenizer = tokenizer if text is None else _with_template(tokenizer, text)
        ends = {tokenizer.eos_token_id}
        self._tokens = special_tokens_of(tokenizer)
        self._renderer: Renderer | None = None
        if text is not None:
            spellings = [*self._tokens.spellings, str(tokenizer.eos_token or "")]
            template = ChatTemplate(tokenizer, text, spellings, options.template_options)
            ends.add(tokenizer.convert_tokens_to_ids(template.end_token))
            self._renderer = Renderer(template, self._tokens, options.empty_think)
        elif options.template_options or options.text_as_turns:
            key = "template_options" if options.template_options else "text_as_turns"
            raise ConfigError([self._no_template(f"data.{key} needs")])
        self.end_ids: list[int] = sorted(end for end in ends if end is not None)

    @property
    def has_template(self) -> bool:
        """Whether turns can be rendered."""
        return self._renderer is not None

    @cached_property
    def _encoder(self) -> TextEncoder:
        # Made when it is first needed: a vocabulary of 150,000 tokens takes seconds to copy.
        return TextEncoder(self.tokenizer, self._tokens)

    @property
    def rules(self) -> list[Any]:
        """Everything that decides which ids a text becomes, as plain values."""
        special = {str(k): str(v) for k, v in self.tokenizer.special_tokens_map.items()}
        asked = self._options
        choices = [self._template, asked.template_options, asked.empty_think, asked.text_as_turns]
        return [*choices, special, self._encoder.content]

    def question(self, text: str) -> Sequence[Message] | str:
        """What a person types: a user's turn, or plain text where there is no chat template."""
        return as_turns(text) if self.has_template else text

    def render_prompt(self, prompt: Sequence[Message] | str) -> str:
        """Text that an answer is generated from, special tokens as placeholders.

        Args:
            prompt: Turns, or plain text.

        Raises:
            RenderError: The prompt is empty text, or the template fails on these turns.
            ConfigError: There are turns and no template.
        """
        if not self._is_plain(prompt):
            return self._need_renderer("turns need").prompt(as_turns(prompt))
        if not prompt:
            raise RenderError("is empty, so there is nothing to continue")
        return self._plain(str(prompt))

    def encode_prompt(self, prompt: Sequence[Message] | str) -> list[int]:
        """Token ids that an answer is generated from; arguments and errors as `render_prompt`."""
        (ids,) = self._encoder.encode([self.render_prompt(prompt)])
        opening = self._encoder.opening.tolist() if self._is_plain(prompt) else []
        return [*opening, *ids.tolist()]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids, with or without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not special))

    def render(self, pair: PreferencePair) -> RenderedPair:
        """Texts of the prompt and of both completions, special tokens as placeholders.

        Raises:
            RenderError: This pair cannot be rendered.
            ConfigError: The pair has turns and there is no template; or it is plain text and there
                is no end-of-text token.
        """
        sides = (pair.prompt, pair.chosen, pair.rejected)
        if pair.tools or pair.template_options or not all(map(self._is_plain, sides)):
            return self._need_renderer(f"{pair.source} has turns or tools, which need").pair(pair)
        if self.tokenizer.eos_token_id is None:
            why = f"{pair.source} is plain text, which needs an end-of-text token, but it has none"
            raise ConfigError([Problem("model.tokenizer", why, "Set its eos_token.")])
        prompt, chosen, rejected = (self._plain(str(side)) for side in sides)
        return RenderedPair(prompt, chosen, rejected, plain=True, skips_template=self.has_template)

    def encode(self, rendered: Sequence[RenderedPair]) -> list[list[np.ndarray]]:
        """Ids, int32 (length,) each, of [prompt, chosen, rejected] of each pair."""
        prompts = self._encoder.encode([texts.prompt for texts in rendered])
        before = [texts.prompt for texts in rendered for _ in range(2)]
        after = [side for texts in rendered for side in (texts.chosen, texts.rejected)]
        sides = self._encoder.encode_continuations(before, after)
        triples = zip(rendered, prompts, sides[::2], sides[1::2], strict=True)
        return [self._closed(parts) if texts.plain else parts for texts, *parts in triples]

    def _closed(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Plain text with what begins and ends a text."""
        prompt, *sides = parts
        end = np.array([self.tokenizer.eos_token_id], np.int32)
        opened = np.concatenate([self._encoder.opening, prompt])
        return [opened, *(np.concatenate([side, end]) for side in sides)]

    def _is_plain(self, side: Any) -> bool:
        return isinstance(side, str) and not self._options.text_as_turns

    def _plain(self, text: str) -> str:
        self._tokens.escape(text)  # refuses the characters that stand for special tokens
        return text

    def _need_renderer(self, what: str) -> Renderer:
        if self._renderer is None:
            raise ConfigError([self._no_template(what)])
        return self._renderer

    def _no_template(self, what: str) -> Problem:
        """What cannot be done without a template, and where one would come from."""
        left_out = self._options.chat_template == "none"
        why = "this leaves it out" if left_out else "the tokenizer has none"
        return Problem(
            "data.chat_template",
            f"{what} a chat template, but {why}",
            "Use auto, or a file: data.chat_template=FILE."
            if left_out
            else "Give one: data.chat_template=FILE.",
            self._options.chat_template,
        )


def _with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedTokenizerBase:
    """The tokenizer with this chat template as its own; the same one where it is already."""
    if tokenizer.chat_template == text:
        return tokenizer
    other = copy.copy(tokenizer)
    other.chat_template = text
    return other
