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
