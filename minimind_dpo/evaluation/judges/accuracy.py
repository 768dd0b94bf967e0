"""A judge that knows nothing of the training pairs, held to pairs that are held out.

Its accuracy is told and decides nothing: rules, or a reward model, may well ask for something else
than the pairs do. But a reward model that is right on half of them judges something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.judge import Judge, Trust
from minimind_dpo.evaluation.statistics import Estimate, share_interval

MOST_PAIRS: Final = 200
"""Held-out pairs that are enough to tell an accuracy to 7 points."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Held-out pairs as texts.

    Attributes:
        prompts: n prompts.
        chosen: Their chosen answers.
        rejected: Their rejected ones.
    """

    prompts: Sequence[Prompt]
    chosen: Sequence[Answer]
    rejected: Sequence[Answer]


class JudgeWithAccuracy:
    """Judges as another does, and says how often that one is right on held-out pairs.

    Args:
        judge: The judge.
        pairs: Gives the pairs, at least one; asked once.
    """

    def __init__(self, judge: Judge, pairs: Callable[[], Pairs]) -> None:
        self.name = judge.name
        self.tokens_ahead = judge.tokens_ahead
        self._judge = judge
        self._pairs = pairs

    @property
    def trust(self) -> Trust:
        """The judge's own, with its accuracy."""
        return replace(self._judge.trust, accuracy=self._accuracy, has_to_be_right=False)

    @cached_property
    def _accuracy(self) -> Estimate | None:
        pairs = self._pairs()
        preferences = self._judge.compare(pairs.prompts, pairs.chosen, pairs.rejected)
        judged = preferences[~np.isnan(preferences)]
        return share_interval((1.0 + judged) / 2.0) if len(judged) else None

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """As the judge does."""
        return self._judge.compare(prompts, first, second)
