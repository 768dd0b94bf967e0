"""From turns to three texts: the prompt, and what each answer adds to it.

1. Escape. Nobody's text can spell a special token (`special_tokens`).
2. Render. The template writes the prompt with its generation header, and each whole conversation.
   A completion is what the second has beyond the first, without what the template writes after the
   end-of-turn token.
3. Think blocks, decided once a pair. A thought that the generation header opens belongs to the
   prompt where both answers go on from it; an empty block that both answers begin with does too.
   Else, if either answer has reasoning, the prompt stops at the header and both completions keep
   their blocks.
4. Place. What is left of special tokens is the template's own and becomes placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.tokenize.special_tokens import THOUGHT, RenderError, SpecialTokens
from minimind_dpo.data.tokenize.template import ChatTemplate

_EMPTY_THINK = re.compile(r"<think>[ \t\n]*</think>\n{0,2}")
_HEADER_THINK = re.compile(r"<think>[ \t\n]*(?:</think>[ \t\n]*)?\Z")
_REAL_THINK = re.compile(r"<think>(?![ \t\n]*</think>)")


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Texts of one pair, special tokens as placeholders.

    Attributes:
        prompt: What generation sees before it answers.
        chosen: Content of the chosen answer, and the end of its turn as the template writes it.
        rejected: The same of the rejected one.
        plain: Plain text: what the tokenizer puts before a text, and its end, are not in these.
        skips_template: Plain text, although there is a template.
        reasoning_lost: The template left out reasoning that the data has.
        unread: What this pair has for the template, `tools` or options, that it does not read.
    """

    prompt: str
    chosen: str
    rejected: str
    plain: bool = False
    skips_template: bool = False
    reasoning_lost: bool = False
    unread: tuple[str, ...] = ()


class Renderer:
    """Renders turns with a chat template.

    Args:
        template: The template.
        tokens: The tokenizer's special tokens.
        empty_think: `keep` empty think blocks or `remove` them.
    """

    def __init__(self, template: ChatTemplate, tokens: SpecialTokens, empty_think: str) -> None:
        self._template = template
        self._tokens = tokens
        self._removes = empty_think == "remove"

    def prompt(self, turns: Sequence[Message]) -> str:
        """Text that an answer is generated from, special tokens as placeholders.

        Raises:
            RenderError: The template fails on these turns.
        """
        rendered = self._template.render([self._escaped(turn) for turn in turns], generate=True)
        return self._tokens.place(_EMPTY_THINK.sub("", rendered) if self._removes else rendered)

    def pair(self, pair: PreferencePair) -> RenderedPair:
        """Texts of the prompt and of both completions.

        Raises:
            RenderError: The template fails on this conversation, or renders the whole so that it
                does not begin with the prompt.
        """
        turns = [self._escaped(turn) for turn in as_turns(pair.prompt)]
        answers = [self._escaped(as_answer(side)) for side in (pair.chosen, pair.rejected)]
        tools, options = self._escape_all(pair.tools), self._escape_all(pair.template_options or {})
        variables = [*options, *(["tools"] if tools else [])]
        base = self._template.render(turns, tools, options, generate=True)
        header = _HEADER_THINK.sub("", base)
        wholes = [self._template.render([*turns, answer], tools, options) for answer in answers]
        prompt, tails = self._place_think(base, header, [self._tail(header, w) for w in wholes])
        chosen, rejected = map(self._tokens.place, tails)
        return RenderedPair(
            self._tokens.place(prompt),
            chosen,
            rejected,
            reasoning_lost=any(map(_loses_reasoning, answers, tails)),
            unread=tuple(name for name in variables if not self._template.reads(name)),
        )

    def _tail(self, header: str, whole: str) -> str:
        """What an answer adds to the header, up to and with its end-of-turn token."""
        if not whole.startswith(header):
            raise RenderError(
                "the chat template renders the whole conversation so that it does not begin with "
                "its prompt; such a template cannot be used for preference pairs"
            )
        tail = whole[len(header) :].removesuffix(self._template.after_end)
        if not tail.endswith(self._template.end):
            raise RenderError(
                f"the chat template does not end this answer with {self._template.end!r}"
            )
        return tail

    def _place_think(self, base: str, header: str, tails: list[str]) -> tuple[str, list[str]]:
        """Decide, for both sides at once, where think blocks stand."""
        reasons = any(_REAL_THINK.match(tail) for tail in tails)
        blocks = [match[0] if (match := _EMPTY_THINK.match(tail)) else "" for tail in tails]
        opened = base[len(header) :]  # "", "<think>\n", or a whole empty block
        closed = opened.rstrip().endswith("</think>")
        if self._removes:
            header = _EMPTY_THINK.sub("", header)
            if not reasons:
                return header, [t[len(b) :] for t, b in zip(tails, blocks, strict=True)]
        if opened and not closed and all(tail.startswith(opened) for tail in tails):
            return header + opened, [tail[len(opened) :] for tail in tails]
        if self._removes:
            return header, tails
        if blocks[0] and blocks[0] == blocks[1]:
            return header + blocks[0], [tail[len(blocks[0]) :] for tail in tails]
        if closed and not any(tail.startswith("<think>") for tail in tails):
            return base, tails
        return header, tails

    def _escaped(self, turn: Message) -> Message:
        escaped: Message = {
            key: value if key == "role" else self._escape_all(value)
            for key, value in turn.items()
            if key != "content"
        }
        is_answer = turn["role"] == "assistant"
        escape = self._tokens.escape_answer if is_answer else self._tokens.escape
        return {**escaped, "content": escape(turn["content"])}

    def _escape_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._tokens.escape(value)
        if isinstance(value, Mapping):
            return {self._escape_all(k): self._escape_all(item) for k, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._escape_all(item) for item in value]
        return value


def as_turns(prompt: Sequence[Message] | str) -> tuple[Message, ...]:
    """A prompt as turns: plain text becomes what the user said."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)


def as_answer(side: Message | str) -> Message:
    """One side as an assistant turn."""
    return {"role": "assistant", "content": side} if isinstance(side, str) else side


def _loses_reasoning(answer: Message, tail: str) -> bool:
    thought = THOUGHT.fullmatch(answer["content"])
    reasoning = answer.get("reasoning_content") or (thought[2] if thought else "")
    return reasoning.strip() not in tail
