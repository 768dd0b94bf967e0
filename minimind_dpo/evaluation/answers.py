"""What judges compare: prompts, and one model's answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from minimind_dpo.batch import Message

Lend: TypeAlias = "Callable[[], AbstractContextManager[PreTrainedModel]]"
"""Gives a model for a while. A reference may be the policy with its adapters off."""

Bar: TypeAlias = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""Makes a progress bar of a title, a total and its noun; inside, a function that advances it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What both models answer.

    Attributes:
        ids: int32 (any length,) tokens, as a model is to continue them.
        turns: The conversation, or plain text, before any cut to length.
        source: Where it was read, `dpo.jsonl:17`.
    """

    ids: np.ndarray
    turns: tuple[Message, ...] | str
    source: str = ""

    @property
    def text(self) -> str:
        """What was asked: the last turn's content, or the plain text."""
        return self.turns if isinstance(self.turns, str) else str(self.turns[-1]["content"])

    @property
    def conversation(self) -> str:
        """All that was said: the text where there is one turn, else `role: content` for each."""
        if isinstance(self.turns, str) or len(self.turns) == 1:
            return self.text
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in self.turns)


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer.

    Attributes:
        text: Without special tokens.
        ids: int32 (any length,) tokens, the one that ended it among them.
        ended: Whether the model ended its turn; else the longest answer allowed cut it.
    """

    text: str
    ids: np.ndarray
    ended: bool

    @property
    def content_ids(self) -> np.ndarray:
        """The tokens without the one that ended it."""
        return self.ids[:-1] if self.ended else self.ids


def alike(first: Sequence[Answer], second: Sequence[Answer]) -> np.ndarray:
    """Where two models gave the same text: bool (n,). Judges that read texts find a tie there."""
    return np.array([a.text == b.text for a, b in zip(first, second, strict=True)], bool)
