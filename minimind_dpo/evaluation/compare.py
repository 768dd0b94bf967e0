"""Several policies judged on the same prompts against the same reference, and compared in pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from minimind_dpo.evaluation.statistics import Estimate, paired_difference
from minimind_dpo.evaluation.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """A policy beside the first one.

    Attributes:
        name: The policy's.
        first: The first policy's name.
        verdict: On the policy.
        difference: Its win rate less that of the first, prompt by prompt; None where no prompt was
            judged for both, or the judge cannot judge.
    """

    name: str
    first: str
    verdict: Verdict
    difference: Estimate | None

    @classmethod
    def of(cls, name: str, verdict: Verdict, first: str, other: Verdict) -> Comparison:
        """Of two verdicts on the same prompts."""
        ours, theirs = verdict.judged, other.judged
        difference = None
        if ours and theirs and ours.win_rate and theirs.win_rate:
            shares = np.stack([(1.0 + each.preferences) / 2.0 for each in (ours, theirs)])
            shares = shares[:, ~np.isnan(shares).any(0)]
            difference = paired_difference(*shares) if shares.shape[1] else None
        return cls(name, first, verdict, difference)

    @property
    def sentence(self) -> str:
        """Which of them is better, by the interval alone."""
        if self.difference is None:
            return f"cannot tell {self.name} from {self.first}: nobody could judge both"
        points = _points(self.difference)
        if 0.0 in self.difference:
            return f"cannot tell {self.name} from {self.first}: {points} points of win rate"
        better, worse = self.name, self.first
        if self.difference.value < 0:
            better, worse = worse, better
        return (
            f"{better} is better than {worse}: {self.name} wins {points} points "
            f"{'more' if better == self.name else 'less'} of {self.difference.n} prompts"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "policy": self.name,
            "first": self.first,
            "difference": self.difference and asdict(self.difference),
            "sentence": self.sentence,
        }


def comparison_table(name: str, verdict: Verdict, others: Sequence[Comparison]) -> Table:
    """The policies, a line each, for the terminal."""
    title = f"Against the same reference on {len(verdict.cases)} held-out prompts"
    grid = Table(title=title, box=box.ROUNDED, caption="points: win rate less that of the first")
    for heading in ("policy", "verdict", "wins", "at equal length", "KL, nats", "length", "points"):
        grid.add_column(heading, justify="left" if heading in ("policy", "verdict") else "right")
    grid.add_row(name, *_cells(verdict), "")
    for other in others:
        difference = "-" if other.difference is None else _points(other.difference)
        grid.add_row(other.name, *_cells(other.verdict), difference)
    return grid


def _cells(verdict: Verdict) -> tuple[str, ...]:
    judged = verdict.judged
    rate = None if judged is None else judged.win_rate
    controlled = None if judged is None else judged.length_controlled
    rates = ("-" if each is None else each.percent() for each in (rate, controlled))
    wins, at_equal_length = rates
    costs = verdict.costs
    kl, length = f"{costs.kl.value:.2g}", f"x{costs.length.change.value:.2f}"
    return verdict.decision, wins, at_equal_length, kl, length


def _points(difference: Estimate) -> str:
    """`+12 [+3, +21]`."""
    value, low, high = (100 * x for x in (difference.value, difference.low, difference.high))
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
