"""Alarms: plain sentences on answers whose form collapses, and on a win that goes with length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.measures import Costs
from minimind_dpo.evaluation.text import Text

SEEN_SHARE: Final = 0.05
"""Share of repetition, or of answers that do not end, that is seen in a handful of answers."""
SEEN_LENGTH: Final = 1.5
"""Times longer, or shorter, at which length is the first thing that is seen."""


def alarms(costs: Costs, judged: Judged | None) -> tuple[Text, ...]:
    """Sentences on answers whose form collapses, and on a win that goes with length.

    A change counts where its interval excludes none, and where it is large enough to be seen.
    """
    return (*_form_alarms(costs), *(() if judged is None else _length_alarm(judged)))


def _form_alarms(costs: Costs) -> Iterator[Text]:
    repeats, ended, length = costs.repetition, costs.ended, costs.length
    if repeats.change.low > 0 and repeats.change.value >= SEEN_SHARE:
        ours, theirs = f"{repeats.policy:.0%}", f"{repeats.reference:.0%}"
        yield Text(
            f"Answers repeat themselves: {ours} of their 4-grams came before, {theirs} in the "
            "reference's.",
            f"回答自我重复：{ours} 的四元组前面已经出现过，参考模型为 {theirs}。",
        )
    if ended.change.high < 0 and ended.change.value <= -SEEN_SHARE:
        ours, theirs = f"{ended.policy:.0%}", f"{ended.reference:.0%}"
        yield Text(
            f"Answers do not end: {ours} end their turn, {theirs} of the reference's do.",
            f"回答不结束：{ours} 正常结束，参考模型为 {theirs}。",
        )
    ours, theirs, times = (
        f"{length.policy:.0f}",
        f"{length.reference:.0f}",
        f"{length.change.value:.1f}",
    )
    if length.change.low > 1 and length.change.value >= SEEN_LENGTH:
        yield Text(
            f"Answers run long: {ours} tokens, {times} times the reference's {theirs}.",
            f"回答过长：{ours} 个词元，是参考模型 {theirs} 个的 {times} 倍。",
        )
    if length.change.high < 1 and length.change.value <= 1 / SEEN_LENGTH:
        yield Text(
            f"Answers shrink: {ours} tokens, the reference's have {theirs}.",
            f"回答变短：{ours} 个词元，参考模型为 {theirs} 个。",
        )


def _length_alarm(judged: Judged) -> Iterator[Text]:
    rate, controlled = judged.win_rate, judged.length_controlled
    if rate and controlled and rate.low > 0.5 and controlled.low <= 0.5:
        at_equal_length = controlled.percent()
        yield Text(
            f"The win may be one of length: at equal length the win rate is {at_equal_length}, "
            "which holds one half.",
            f"胜出可能只是因为更长：等长时胜率为 {at_equal_length}，包含一半。",
        )
