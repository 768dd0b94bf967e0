"""The jobs of a sweep's folder: what each was given, and what its verdict says.

<sweep>/<n>/job.json          its command line
<sweep>/<n>/verdict.json      judge and alarms
<sweep>/<n>/frontier.jsonl    a line a verdict: step, win rate, KL; the last of the exported weights
<sweep>/<n>/summary.json      seconds
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minimind_dpo.disk import read_lines, read_object
from minimind_dpo.options.limits import is_number
from minimind_dpo.report.options import SweepOptions

SEED: Final = "seed"
_NOT_SETTINGS: Final = ("run_dir", "resume", "name")


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep.

    Attributes:
        number: Its folder's name.
        settings: Its overrides, by key.
        point: Numbers of its verdict on the exported weights; empty where there is none.
        earlier: The same of verdicts while it trained.
        alarms: Sentences of its verdict.
        length_controlled_error: Standard error of the win rate at equal length, over prompts.
        judge: Name of the judge, and why it cannot judge where it cannot.
        loss: Of validation, or of training where nothing was validated; None for a run that has
            not ended well.
        seconds: Wall-clock time of the run.
        left: Why it has no result; empty where it has one.
    """

    number: str
    settings: Mapping[str, str]
    point: Mapping[str, float] = field(default_factory=dict)
    earlier: tuple[Mapping[str, float], ...] = ()
    alarms: tuple[str, ...] = ()
    length_controlled_error: float | None = None
    judge: str = ""
    loss: float | None = None
    seconds: float | None = None
    left: str = ""

    def objective(self, options: SweepOptions) -> float | None:
        """What a search goes by; None where the run has no such number.

        A win rate with a KL divergence beyond the bound counts as minus the share by which it is
        beyond, and so is below every one within.
        """
        if options.objective == "loss":
            return self.loss
        rate, kl = self.point.get(options.objective), self.point.get("kl")
        if rate is None or options.max_kl is None:
            return rate
        return None if kl is None else rate if kl <= options.max_kl else 1 - kl / options.max_kl

    @property
    def result(self) -> str:
        """Its numbers in a few words."""
        parts = [f"loss {self.loss:.4g}"] if self.loss is not None else []
        names = {"length_controlled": "wins {:.0%} at equal length", "kl": "KL {:.2f} nats"}
        parts += [text.format(self.point[key]) for key, text in names.items() if key in self.point]
        return ", ".join(parts)


def read_jobs(sweep: Path) -> list[Job]:
    """Every job that was begun, in the order of their numbers."""
    folders = {path.parent for path in sweep.glob("*/job.json")}
    return [read_job(folder) for folder in sorted(folders, key=lambda p: (len(p.name), p.name))]


def swept_keys(jobs: list[Job]) -> list[str]:
    """Keys that have several values over the jobs, in the order of the command line."""
    values: dict[str, set[str | None]] = {}
    for job in jobs:
        for key in job.settings:
            values.setdefault(key, {other.settings.get(key) for other in jobs})
    return [key for key, several in values.items() if len(several) > 1]


def read_job(folder: Path) -> Job:
    """A job that was begun."""
    arguments = read_object(folder / "job.json").get("arguments", [])
    pairs = (str(text).lstrip("+~").partition("=") for text in arguments)
    settings = {key: value for key, is_one, value in pairs if is_one and key not in _NOT_SETTINGS}
    summary, verdict = (read_object(folder / f"{name}.json") for name in ("summary", "verdict"))
    if "diverged" in summary:
        return Job(folder.name, settings, left="diverged")
    loss = _loss(summary)
    if loss is None:
        return Job(folder.name, settings, left="unfinished or failed: summary.json has no loss")
    points = read_points(folder / "frontier.jsonl")
    if not verdict or not points:
        return Job(folder.name, settings, loss=loss, left="it has no verdict")
    judge = verdict.get("judge") or {}
    unable = judge.get("unable") or ("" if judge.get("can_judge", True) else "cannot judge")
    name = judge.get("name", "none")
    return Job(
        folder.name,
        settings,
        points[-1],
        tuple(points[:-1]),
        tuple(map(str, verdict.get("alarms") or ())),
        _standard_error(judge.get("length_controlled") or {}),
        f"{name}: {unable}" if unable else str(name),
        loss,
        summary.get("wall_seconds"),
    )


def _loss(summary: Mapping[str, Any]) -> float | None:
    for name in ("val", "train"):
        numbers = summary.get(name)
        loss: Any = numbers.get("loss") if isinstance(numbers, dict) else None
        if is_number(loss):
            return float(loss)
    return None


def _standard_error(interval: Mapping[str, Any]) -> float | None:
    """Of a 95% interval, which is 2 x 1.96 standard errors wide."""
    low: Any = interval.get("low")
    high: Any = interval.get("high")
    return (high - low) / 3.92 if is_number(low) and is_number(high) else None


def read_points(path: Path) -> list[dict[str, float]]:
    """Lines of numbers, `frontier.jsonl`; what is none is left out."""
    try:
        rows = read_lines(path)
    except (OSError, ValueError):
        return []
    return [{k: v for k, v in row.items() if is_number(v)} for row in rows if isinstance(row, dict)]


def frontier_of(points: Iterable[Mapping[str, float]]) -> list[tuple[float, float]]:
    """(KL, win rate at equal length) of the points that have both."""
    keys = ("kl", "length_controlled")
    return [(p["kl"], p["length_controlled"]) for p in points if all(key in p for key in keys)]
