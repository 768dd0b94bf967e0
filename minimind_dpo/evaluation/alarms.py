"""Alarms: plain sentences on answers whose form collapses, and on a win that goes with length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.measures import Costs

SEEN_SHARE: Final = 0.05
"""Share of repetition, or of answers that do not end, that is seen in a handful of answers."""
SEEN_LENGTH: Final = 1.5
"""Times longer, or shorter, at which length is the first thing that is seen."""


def alarms(costs: Costs, judged: Judged | None) -> tuple[str, ...]:
    """Sentences on answers whose form collapses, and on a win that goes with length.

    A change counts where its interval excludes none, and where it is large enough to be seen.
    """
    length = None if judged is None else _length_alarm(judged)
    return (*_form_alarms(costs), *([length] if length else []))


def _form_alarms(costs: Costs) -> Sequence[str]:
    found = []
    repeats, ended, length = costs.repetition, costs.ended, costs.length
    if repeats.change.low > 0 and repeats.change.value >= SEEN_SHARE:
        found.append(
            f"Answers repeat themselves: {repeats.policy:.0%} of their 4-grams came before, "
            f"{repeats.reference:.0%} in the reference's."
        )
    if ended.change.high < 0 and ended.change.value <= -SEEN_SHARE:
        found.append(
            f"Answers do not end: {ended.policy:.0%} end their turn, {ended.reference:.0%} of the "
            "reference's do."
        )
    if length.change.low > 1 and length.change.value >= SEEN_LENGTH:
        found.append(
            f"Answers run long: {length.policy:.0f} tokens, {length.change.value:.1f} times the "
            f"reference's {length.reference:.0f}."
        )
    if length.change.high < 1 and length.change.value <= 1 / SEEN_LENGTH:
        found.append(
            f"Answers shrink: {length.policy:.0f} tokens, the reference's have "
            f"{length.reference:.0f}."
        )
    return found


def _length_alarm(judged: Judged) -> str | None:
    rate, controlled = judged.win_rate, judged.length_controlled
    if rate is None or controlled is None or rate.low <= 0.5 or controlled.low > 0.5:
        return None
    return (
        f"The win may be one of length: at equal length the win rate is {controlled.percent()}, "
        f"which holds one half."
    )
