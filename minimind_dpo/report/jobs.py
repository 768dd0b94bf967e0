"""The jobs of a sweep's folder: what each was given, and what its verdict says.

<sweep>/<n>/job.json          its command line
<sweep>/<n>/verdict.json      decision and alarms
<sweep>/<n>/frontier.jsonl    a line a verdict: step, win rate, KL; the last of the exported weights
<sweep>/<n>/summary.json      seconds
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from minimind_dpo.disk import read_json
from minimind_dpo.options.limits import is_number

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
    seconds: float | None = None
    left: str = ""


def read_jobs(sweep: Path) -> list[Job]:
    """Every job that was begun, in the order of their numbers.

    Raises:
        ValueError: The folder holds no job.
    """
    folders = sorted(
        {path.parent for path in sweep.glob("*/job.json")}, key=lambda p: (len(p.name), p.name)
    )
    if not folders:
        raise ValueError(f"{sweep} holds no job of a sweep (a folder with job.json)")
    return [_read_job(folder) for folder in folders]


def swept_keys(jobs: list[Job]) -> list[str]:
    """Keys that have several values over the jobs, in the order of the command line."""
    values: dict[str, set[str | None]] = {}
    for job in jobs:
        for key in job.settings:
            values.setdefault(key, {other.settings.get(key) for other in jobs})
    return [key for key, several in values.items() if len(several) > 1]


def _read_job(folder: Path) -> Job:
    given = read_json(folder / "job.json")
    arguments = given.get("arguments", []) if isinstance(given, dict) else []
    pairs = (str(text).lstrip("+~").partition("=") for text in arguments)
    settings = {key: value for key, is_one, value in pairs if is_one and key not in _NOT_SETTINGS}
    summary, verdict = (_object(folder / f"{name}.json") for name in ("summary", "verdict"))
    if not summary:
        return Job(folder.name, settings, left="unfinished or failed: it has no summary.json")
    if "diverged" in summary:
        return Job(folder.name, settings, left="diverged")
    points = _points(folder / "frontier.jsonl")
    if not verdict or not points:
        return Job(folder.name, settings, left="it has no verdict")
    judge = verdict.get("judge") or {}
    name, unable = judge.get("name", "none"), judge.get("unable")
    return Job(
        folder.name,
        settings,
        points[-1],
        tuple(points[:-1]),
        tuple(map(str, verdict.get("alarms") or ())),
        _standard_error(judge.get("length_controlled") or {}),
        f"{name}: {unable}" if unable else str(name),
        summary.get("wall_seconds"),
    )


def _standard_error(interval: Mapping[str, Any]) -> float | None:
    """Of a 95% interval, which is 2 x 1.96 standard errors wide."""
    low: Any = interval.get("low")
    high: Any = interval.get("high")
    return (high - low) / 3.92 if is_number(low) and is_number(high) else None


def _object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def _points(path: Path) -> list[dict[str, float]]:
    """Lines of numbers; what is none is left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
    return [{k: v for k, v in row.items() if is_number(v)} for row in rows if isinstance(row, dict)]
