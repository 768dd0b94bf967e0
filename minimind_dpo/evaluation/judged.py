"""What a judge says of a policy's answers, and what that decides.

The interval of the win rate alone decides, at 95%:

    better       it lies above one half
    worse        it lies below one half
    not better   it holds one half and lies within `NO_DIFFERENCE` of it: there is nothing to see
    cannot tell  it holds one half and more than that

A judge that cannot tell chosen from rejected decides nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.statistics import (
    Estimate,
    length_controlled,
    prompts_to_decide,
    share_interval,
)
from minimind_dpo.evaluation.text import Text, chinese

BETTER, NOT_BETTER, WORSE = "better", "not better", "worse"
CANNOT_TELL, NOT_JUDGED = "cannot tell", "not judged"

DECISIONS: Final = {
    decision: Text(decision, zh)
    for decision, zh in (
        (BETTER, "更好"),
        (NOT_BETTER, "没有变好"),
        (WORSE, "更差"),
        (CANNOT_TELL, "无法判断"),
        (NOT_JUDGED, "未评判"),
    )
}

NO_DIFFERENCE: Final = 0.05
"""A win rate between 45% and 55% changes too little for anybody to see."""

MOST_PROMPTS: Final = 1_000_000
"""Beyond this many prompts that it would take, the number is not told."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What one judge says of the answers.

    Attributes:
        judge: Its name.
        trust: What it can be trusted for.
        preferences: float (n,) in [-1, 1], 1 the policy's answer; NaN where it could not judge.
        longer_by: float (n,), tokens by which the policy's answer is longer.
    """

    judge: str
    trust: Trust
    preferences: np.ndarray
    longer_by: np.ndarray

    @property
    def sentence(self) -> Text:
        """What the judge can be trusted for."""
        words = self.trust.words
        return Text(
            f"Judge {self.judge} can be trusted for {words}.",
            f"裁判 {self.judge} 的可信范围：{chinese(words)}。",
        )

    @property
    def shares(self) -> np.ndarray:
        """float (judged prompts,) in [0, 1], ties 0.5."""
        return (1.0 + self.preferences[~np.isnan(self.preferences)]) / 2.0

    @property
    def _counts(self) -> bool:
        return len(self.shares) > 0 and self.trust.can_judge

    @property
    def win_rate(self) -> Estimate | None:
        """None where no prompt could be judged, or the judge cannot judge."""
        return share_interval(self.shares) if self._counts else None

    @property
    def length_controlled(self) -> Estimate | None:
        """At equal length."""
        judged = ~np.isnan(self.preferences)
        return length_controlled(self.shares, self.longer_by[judged]) if self._counts else None

    @property
    def decision(self) -> str:
        """By the interval alone."""
        rate = self.win_rate
        if rate is None:
            return CANNOT_TELL
        if 0.5 not in rate:
            return BETTER if rate.low > 0.5 else WORSE
        near = rate.low >= 0.5 - NO_DIFFERENCE and rate.high <= 0.5 + NO_DIFFERENCE
        return NOT_BETTER if near else CANNOT_TELL

    @property
    def prompts_to_decide(self) -> int | None:
        """Where it cannot tell though the judge can judge."""
        if self.decision != CANNOT_TELL or self.win_rate is None:
            return None
        needed = prompts_to_decide(self.shares)
        return needed if needed is not None and needed <= MOST_PROMPTS else None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the preferences stay with the answers."""
        rate, controlled, shares = self.win_rate, self.length_controlled, self.shares
        return {
            "name": self.judge,
            "sentence": self.sentence,
            "sentence_zh": self.sentence.zh,
            **self.trust.to_json(),
            "win_rate": rate and asdict(rate),
            "length_controlled": controlled and asdict(controlled),
            "wins": int((shares > 0.5).sum()),
            "ties": int((shares == 0.5).sum()),
            "losses": int((shares < 0.5).sum()),
            "unjudged": int(np.isnan(self.preferences).sum()),
        }
