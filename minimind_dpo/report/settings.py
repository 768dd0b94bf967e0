"""Settings of a sweep compared: seeds averaged, and the one to take by a stated rule."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Final

from minimind_dpo.report.jobs import SEED, Job, swept_keys

RULE: Final = (
    "Recommended: of the settings without an alarm whose win rate at equal length is above one "
    "half by 1.96 standard errors, the one with the smallest KL within one standard error of the "
    "highest. The error of a setting joins that over prompts and that over seeds."
)


@dataclass(frozen=True, slots=True)
class Number:
    """A mean over seeds.

    Attributes:
        mean: Of the seeds that have it.
        spread: Standard deviation over seeds; None for one seed.
    """

    mean: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Setting:
    """All seeds of one combination of swept keys.

    Attributes:
        values: Its swept keys and their values.
        jobs: Its runs that have a result.
        left: Its runs that have none.
    """

    values: dict[str, str]
    jobs: list[Job]
    left: list[Job]

    @property
    def name(self) -> str:
        """`loss.beta=0.1`; numbers that a search has drawn are rounded."""
        values = {key: _rounded(value) for key, value in self.values.items()}
        return " ".join(f"{key}={value}" for key, value in values.items()) or "all runs"

    @property
    def alarms(self) -> list[str]:
        """Of all its runs, each once."""
        return list(dict.fromkeys(alarm for job in self.jobs for alarm in job.alarms))

    def number(self, key: str) -> Number | None:
        """A number of the verdicts; None where no run has it."""
        if key == "seconds":
            values = [job.seconds for job in self.jobs if job.seconds is not None]
        else:
            values = [job.point[key] for job in self.jobs if key in job.point]
        if not values:
            return None
        spread = statistics.stdev(values) if len(values) > 1 else None
        return Number(statistics.fmean(values), spread)

    def error(self) -> float | None:
        """Standard error of the mean win rate at equal length, over prompts and seeds.

        All seeds answer the same prompts, so that more seeds do not lessen the error over prompts.
        """
        errors = [e for job in self.jobs if (e := job.length_controlled_error) is not None]
        number = self.number("length_controlled")
        if number is None or not errors:
            return None
        over_seeds = 0.0 if number.spread is None else number.spread**2 / len(self.jobs)
        return math.sqrt(statistics.fmean(e * e for e in errors) + over_seeds)


def _rounded(value: str) -> str:
    """A number of more than eight characters to four digits; all else as it is."""
    if len(value) <= 8:
        return value
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def compare(jobs: list[Job]) -> list[Setting]:
    """The settings of a sweep, in the order in which they were first run."""
    keys = [key for key in swept_keys(jobs) if key != SEED]
    groups: dict[tuple[str, ...], Setting] = {}
    for job in jobs:
        values = {key: job.settings.get(key, "default") for key in keys}
        setting = groups.setdefault(tuple(values.values()), Setting(values, [], []))
        (setting.left if job.left else setting.jobs).append(job)
    return list(groups.values())


def recommend(settings: list[Setting]) -> tuple[Setting | None, str]:
    """The setting to take by `RULE`, and one sentence that says so; None where none is."""
    judged = [s for s in settings if s.error() is not None and s.number("kl") is not None]
    if not judged:
        return None, "no run has a win rate, so nothing is recommended"
    sound = [s for s in judged if not s.alarms and _rate(s) - 1.96 * _error(s) > 0.5]
    if not sound:
        why = "none beats the reference"
        return None, why if not any(s.alarms for s in judged) else f"{why} without an alarm"
    best = max(sound, key=_rate)
    near = [s for s in sound if _rate(s) >= _rate(best) - _error(best)]
    choice = min(near, key=_kl)
    sentence = (
        f"take {choice.name}: wins {_rate(choice):.0%} at equal length, KL {_kl(choice):.2f} nats"
    )
    if choice is not best:
        sentence += (
            f"; {best.name} wins {_rate(best):.0%}, no more than one standard error better, "
            f"at KL {_kl(best):.2f}"
        )
    return choice, sentence


def _rate(setting: Setting) -> float:
    number = setting.number("length_controlled")
    return math.nan if number is None else number.mean


def _kl(setting: Setting) -> float:
    number = setting.number("kl")
    return math.nan if number is None else number.mean


def _error(setting: Setting) -> float:
    return setting.error() or 0.0
