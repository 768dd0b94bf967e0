"""A judge that is a program: whoever wrote the task says what a wanted answer is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.judge import Trust


class ProgramJudge:
    """Prefers wanted answers to others; an answer that was cut is never wanted.

    Args:
        name: As `judge.name` has it.
        words: What it can be trusted for.
        is_wanted: Says of a prompt's text and an answer's whether it is wanted.
        is_correct: Says of them whether the content is right; counts facts that are lost.
    """

    def __init__(
        self,
        name: str,
        words: str,
        is_wanted: Callable[[str, str], bool],
        is_correct: Callable[[str, str], bool] | None = None,
    ) -> None:
        self.name = name
        self.tokens_ahead = 0
        self.trust = Trust(words)
        self._is_wanted = is_wanted
        self._is_correct = is_correct

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1 where the first alone is wanted, -1 where the second alone is, 0 else."""
        return self._wanted(prompts, first) - self._wanted(prompts, second)

    def facts(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> np.ndarray | None:
        """Whether each answer is right: bool (prompts,); None where the program cannot tell."""
        if self._is_correct is None:
            return None
        pairs = zip(prompts, answers, strict=True)
        return np.array([self._is_correct(prompt.text, answer.text) for prompt, answer in pairs])

    def _wanted(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> np.ndarray:
        pairs = zip(prompts, answers, strict=True)
        return np.array(
            [float(answer.ended and self._is_wanted(p.text, answer.text)) for p, answer in pairs]
        )
