"""What tests of the verdict share: answers of given lengths, a judge of one's own, no progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.judge import Trust


@contextmanager
def silent(title: str, total: int, noun: str) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda count: None


def asked(text: str, number: int = 1) -> Prompt:
    """A prompt of one turn."""
    return Prompt(np.array([1, 2], np.int32), ({"role": "user", "content": text},), f"x:{number}")


def written(text: str, ended: bool = True) -> Answer:
    """An answer with a token for each character, and one that ends it."""
    ids = np.array([ord(character) for character in text] + [0] * ended, np.int32)
    return Answer(text, ids, ended)


class Scores:
    """A judge that prefers the higher score."""

    name = "scores"
    trust = Trust("what the test says")
    tokens_ahead = 0

    def __init__(self, score: Callable[[Answer], float]) -> None:
        self.score = score

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        return np.array(
            [np.sign(self.score(a) - self.score(b)) for a, b in zip(first, second, strict=True)]
        )
