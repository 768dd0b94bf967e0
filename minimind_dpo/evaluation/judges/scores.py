"""Judges that give each answer a score: the higher one is preferred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.judge import Trust

Score: TypeAlias = Callable[[Prompt, Answer], float]
"""Points of one answer."""


class ScoreJudge:
    """Prefers the answer with more points; the same points are a tie.

    Args:
        name: As `judge.name` has it.
        words: What it can be trusted for.
        score: Points of an answer; NaN where it has none.
    """

    tokens_ahead = 0

    def __init__(self, name: str, words: str, score: Score) -> None:
        self.name = name
        self.trust = Trust(words)
        self._score = score

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1 where the first has more points, -1 where the second has, 0 else."""
        ours, theirs = (
            np.array([self._score(p, a) for p, a in zip(prompts, answers, strict=True)], np.float64)
            for answers in (first, second)
        )
        return prefer(ours, theirs)


def prefer(ours: np.ndarray, theirs: np.ndarray, alike: np.ndarray | bool = False) -> np.ndarray:
    """Preferences of scores: float64 (n,), NaN where a score is NaN.

    Args:
        ours: float64 (n,), scores of the first answers.
        theirs: float64 (n,), of the second ones.
        alike: bool (n,), where both are one text: a tie, whatever noise is in their scores.
    """
    return np.where(alike, 0.0, np.sign(ours - theirs))
