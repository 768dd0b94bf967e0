"""A conversation with one model: turns, answers as they come, and what fits into its positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from minimind_dpo.batch import Message
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.evaluation.sampling import end_ids, room, sample_completions


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the most probable token.
        top_p: Sample from the most probable tokens that make up this share.
        max_new_tokens: Longest answer.
        seed: Of the first answer; each further turn has the next one.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class AnswerStream(BaseStreamer):
    """Hands on an answer while it is drawn, in whole characters.

    Args:
        decode: Token ids to text.
        write: Gets each further piece.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]
    ) -> None:
        self._decode = decode
        self._write = write
        self._ids: list[int] = []
        self._begun = False
        self.text = ""

    def put(self, value: Any) -> None:
        """Take the prompt first, then each token, as `generate` gives them."""
        if not self._begun:
            self._begun = True
            return
        self._ids += value.flatten().tolist()
        # The first bytes of a character decode to a sign of their own, until the last one comes.
        self._hand_on(self._decode(self._ids).rstrip("\ufffd"))

    def end(self) -> None:
        """Hand on what is left."""
        self._hand_on(self._decode(self._ids))

    def _hand_on(self, text: str) -> None:
        piece, self.text = text[len(self.text) :], text
        if piece:
            self._write(piece)


@dataclass(slots=True)
class Conversation:
    """Turns so far, and how the next answer is drawn.

    A base model, which has no chat template, continues each text by itself.

    Attributes:
        chat: Writes turns as the training data has them.
        sampling: How answers are drawn.
        system: What the system's turn says; None for no such turn.
        turns: The user's and the assistant's, in order.
    """

    chat: Chat
    sampling: Sampling
    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def head(self) -> list[Message]:
        """The system's turn, if there is one."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    @property
    def asked(self) -> int:
        """Questions so far."""
        return sum(turn["role"] == "user" for turn in self.turns)

    def answer(
        self,
        model: PreTrainedModel,
        question: str,
        write: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> str:
        """The answer to a further question, which is not yet a turn.

        Args:
            model: The model.
            question: What the user says.
            write: Gets the answer's text piece by piece.
            tell: Gets a sentence where earlier turns are left out.

        Raises:
            RenderError: The template refuses these turns.
            KeyboardInterrupt: It was interrupted; `write` has what there was of it.
        """
        sampling = self.sampling
        longest, most = room(model, sampling.max_new_tokens)
        ids = self._encode(question, most, tell)
        (drawn,) = sample_completions(
            model,
            [ids],
            end_ids=end_ids(model, self.chat),
            max_new_tokens=longest,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=(sampling.seed + self.asked) % 2**32,
            streamer=AnswerStream(self.chat.decode, write),
        )
        return self.chat.decode(drawn)

    def add(self, question: str, answer: str) -> None:
        """Take a question and its answer as turns."""
        self.turns += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]

    def _encode(self, question: str, most: int, tell: Callable[[str], None]) -> list[int]:
        """Tokens of the conversation, without as many of the first exchanges as do not fit."""
        if not self.chat.has_template:
            return self._told_if_cut(self.chat.encode_prompt(question), most, tell)
        for left_out in range(0, len(self.turns) + 1, 2):
            turns = [*self.head, *self.turns[left_out:], {"role": "user", "content": question}]
            ids = self.chat.encode_prompt(turns)
            if len(ids) <= most:
                break
        if left_out:
            tell(
                f"The model has room for {most} tokens before its answer: the first "
                f"{left_out // 2} exchange(s) are left out (/reset begins anew)"
            )
        return self._told_if_cut(ids, most, tell)

    @staticmethod
    def _told_if_cut(ids: list[int], most: int, tell: Callable[[str], None]) -> list[int]:
        if len(ids) > most:
            tell(f"This text has {len(ids)} tokens, and the model room for {most}: its end is read")
        return ids[-most:]
