"""From a preference pair to three texts: the prompt, and what each answer adds to it.

1. Protect. Whatever in the conversation spells a special token is replaced by a mark (one
   private-use character per token), so that nobody's text can open or close a turn.
2. Render. The chat template prints the prompt with its generation header, and each whole
   conversation. A completion is what the second has beyond the first, without what the template
   puts after the end-of-turn token.
3. Think blocks, decided once a pair. An empty block that both answers begin with belongs to the
   prompt, as at inference. If either answer has real reasoning, the prompt stops at the header and
   both completions keep their blocks.
4. Anchor. The special tokens that are left are the template's own. Each becomes an anchor (another
   private-use character, a token of its own in `tokenization`), and the marks become text again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.tokenize.special_tokens import THOUGHT, RenderError, SpecialText, any_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EMPTY_THINK = re.compile(r"<think>[ \t\n]*</think>\n{0,2}")
_HEADER_THINK = re.compile(r"<think>[ \t\n]*(?:</think>[ \t\n]*)?\Z")
_REAL_THINK = re.compile(r"<think>(?![ \t\n]*</think>)")
_QUESTION, _ANSWER = "sentinelquestion", "sentinelanswer"


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """Texts of one pair, special tokens as anchors.

    Attributes:
        prompt: What generation sees before it answers.
        chosen: Content and end-of-turn token of the chosen answer.
        rejected: The same of the rejected one.
        reasoning_lost: The template printed an answer without the reasoning that the data has.
    """

    prompt: str
    chosen: str
    rejected: str
    reasoning_lost: bool = False


class ChatRenderer:
    """Prints pairs with a chat template.

    Args:
        tokenizer: Supplies the template's engine and its special tokens.
        template: Jinja text of the template.
        text: Keeps the special tokens apart.
        added_tokens: Spellings of all added tokens, special or not, one of which ends a turn.
        empty_think: `keep` empty think blocks or `remove` them.
        options: Further variables of the template, for example `enable_thinking`.

    Raises:
        ValueError: If the template ends an answer with no token that generation could stop at.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        text: SpecialText,
        added_tokens: Sequence[str],
        empty_think: str = "keep",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._text = text
        self._removes = empty_think == "remove"
        self._options = dict(options or {})
        self._end, self._after_end = self._find_end(added_tokens)

    def _find_end(self, added_tokens: Sequence[str]) -> tuple[str, str]:
        """What the template prints after an answer, up to its end-of-turn token, and beyond it."""
        where = "data.chat_template: the template"
        question: Message = {"role": "user", "content": _QUESTION}
        try:
            whole = self._print([question, {"role": "assistant", "content": _ANSWER}], None)
        except RenderError as error:
            raise ValueError(
                f"{where} cannot print one question and its answer: {error}"
            ) from error
        before, found, after = whole.rpartition(_ANSWER)
        if not found or _QUESTION not in before:
            raise ValueError(f"{where} leaves out the question or the answer of a plain exchange")
        end = any_of([token for token in added_tokens if token]).search(after)
        if end is None:
            raise ValueError(
                f"{where} prints {after!r} after an answer, in which there is no token to stop at; "
                "a model trained on it would never end an answer. Give another template"
            )
        return after[: end.end()], after[end.end() :]

    def prompt(self, turns: Sequence[Message], tools: Any = None) -> str:
        """Text that generation starts from, special tokens as anchors.

        Raises:
            RenderError: If the template refuses these turns.
        """
        printed = self._print([self._protected(t) for t in turns], self._protect_all(tools), True)
        return self._text.anchor(_EMPTY_THINK.sub("", printed) if self._removes else printed)

    def pair(self, pair: PreferencePair) -> RenderedPair:
        """Texts of the prompt and of both completions, special tokens as anchors.

        Raises:
            RenderError: If the template refuses this conversation, or prints it so that the whole
                does not begin with the prompt.
        """
        turns = [self._protected(turn) for turn in as_turns(pair.prompt)]
        tools = self._protect_all(pair.tools)
        answers = [self._protected(as_answer(side)) for side in (pair.chosen, pair.rejected)]
        base = self._print(turns, tools, True)
        header = _HEADER_THINK.sub("", base)
        tails = [self._tail(header, self._print([*turns, answer], tools)) for answer in answers]
        prompt, tails = self._place_think(base, header, tails)
        lost = any(_loses_reasoning(a, t) for a, t in zip(answers, tails, strict=True))
        chosen, rejected = map(self._text.anchor, tails)
        return RenderedPair(self._text.anchor(prompt), chosen, rejected, lost)

    def _tail(self, header: str, whole: str) -> str:
        if not whole.startswith(header):
            raise RenderError(
                "the chat template prints the whole conversation so that it does not begin with "
                "its prompt; such a template cannot be used for preference pairs"
            )
        tail = whole[len(header) :].removesuffix(self._after_end)
        if not tail.endswith(self._end):
            raise RenderError(f"the chat template does not end this answer with {self._end!r}")
        return tail

    def _place_think(self, base: str, header: str, tails: list[str]) -> tuple[str, list[str]]:
        """Decide, for both sides at once, where think blocks stand."""
        real = any(_REAL_THINK.match(tail) for tail in tails)
        blocks = [match[0] if (match := _EMPTY_THINK.match(tail)) else "" for tail in tails]
        if self._removes:
            header = _EMPTY_THINK.sub("", header)
            if real:
                return header, tails
            return header, [t[len(b) :] for t, b in zip(tails, blocks, strict=True)]
        if blocks[0] and blocks[0] == blocks[1]:
            return header + blocks[0], [tail[len(blocks[0]) :] for tail in tails]
        closed = base.rstrip().endswith("</think>")
        if closed and not any(tail.startswith("<think>") for tail in tails):
            return base, tails
        return header, tails

    def _print(self, turns: list[Message], tools: Any, generate: bool = False) -> str:
        try:
            printed = self._tokenizer.apply_chat_template(
                turns,
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=generate,
                tokenize=False,
                **self._options,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise RenderError(f"the chat template refuses this conversation: {error}") from error
        assert isinstance(printed, str)
        return printed

    def _protected(self, turn: Message) -> Message:
        protected: Message = {
            key: value if key == "role" else self._protect_all(value)
            for key, value in turn.items()
            if key != "content"
        }
        is_answer = turn["role"] == "assistant"
        protect = self._text.protect_answer if is_answer else self._text.protect
        return {**protected, "content": protect(turn["content"])}

    def _protect_all(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text.protect(value)
        if isinstance(value, Mapping):
            return {self._protect_all(k): self._protect_all(item) for k, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._protect_all(item) for item in value]
        return value


def as_turns(prompt: tuple[Message, ...] | str) -> tuple[Message, ...]:
    """A prompt as turns: plain text becomes what the user said."""
    return ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt


def as_answer(side: Message | str) -> Message:
    """One side as an assistant turn."""
    return {"role": "assistant", "content": side} if isinstance(side, str) else side


def _loses_reasoning(answer: Message, tail: str) -> bool:
    thought = THOUGHT.fullmatch(answer["content"])
    reasoning = answer.get("reasoning_content") or (thought[2] if thought else "")
    return reasoning.strip() not in tail
