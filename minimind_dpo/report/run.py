"""A run's page: the verdict first, then curves, answers before and after, data, settings.

Made of what lies in the run's folder alone, so that it can be made anew at any time, also of a run
that has not finished: `python -m minimind_dpo.report RUN`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minimind_dpo.disk import read_lines, read_object, read_rows, write_text
from minimind_dpo.report.curves import Chart, charts, draw
from minimind_dpo.report.numbers import data_rows, training_rows, validation_rows, verdict_rows
from minimind_dpo.report.words import Words

PAGE: Final = "report.html"
SHOWN: Final = 12
"""Prompts whose answers are shown at once; the others are folded away."""


def write_run_report(run: Path, language: str = "en") -> Path:
    """Write `report.html` into a run's folder.

    Args:
        run: With `config.yaml`; all else may be missing.
        language: `en` or `zh`.

    Returns:
        The page.
    """
    path = run / PAGE
    write_text(path, run_page(run, Words(language)))
    return path


def run_page(run: Path, words: Words) -> str:
    """One page that needs no network and fits a phone.

    Args:
        run: The folder of a run.
        words: Of the page's language.
    """
    summary, verdict = (read_object(run / f"{name}.json") for name in ("summary", "verdict"))
    verdict = verdict if "decision" in verdict else {}
    shown, others = _cases(run / "answers.jsonl")
    environment = Environment(
        loader=PackageLoader("minimind_dpo", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.html").render(
        words=words,
        name=run.resolve().name,
        verdict=verdict,
        sentence=_sentence(summary, verdict, words),
        alarms=[words.alarm(alarm) for alarm in verdict.get("alarms", ())],
        verdict_rows=list(verdict_rows(verdict, words)) if verdict else [],
        charts=[(chart.title, Markup(chart.svg)) for chart in _charts(run, words)],
        shown=shown,
        others=others,
        samples=_samples(run / "samples.md"),
        data_rows=list(data_rows(summary, words)) if "data" in summary else [],
        training_rows=list(training_rows(summary, words)) if "steps" in summary else [],
        validation_rows=list(validation_rows(summary)) if summary.get("val") else [],
        config=(run / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        versions=summary.get("versions", {}),
    )


def _sentence(summary: Mapping[str, Any], verdict: Mapping[str, Any], words: Words) -> str:
    if verdict:
        return words.sentence(verdict)
    if "diverged" in summary:
        return f"{words['diverged']}: {summary['diverged']}"
    return words["no_verdict" if summary else "unfinished"]


def _charts(run: Path, words: Words) -> list[Chart]:
    drawn = charts(read_rows(run / "csv" / "metrics.csv")[1], words)
    points = [
        (float(row["kl"]), float(row["length_controlled"]))
        for row in _lines(run / "frontier.jsonl")
        if row.get("kl") is not None and row.get("length_controlled") is not None
    ]
    if len(points) > 1:
        svg = draw({words["policy"]: points}, words["kl"])
        drawn.append(Chart(f"{words['chart_frontier']} / {words['kl']}", svg))
    return drawn


def _cases(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prompts with both answers: some whose answers differ, evenly spaced, and all others."""
    cases = [_case(row) for row in _lines(path)]
    differing = [place for place, case in enumerate(cases) if not case["alike"]]
    count = min(SHOWN, len(differing))
    shown = {differing[i * len(differing) // count] for i in range(count)}
    return (
        [case for place, case in enumerate(cases) if place in shown],
        [case for place, case in enumerate(cases) if place not in shown],
    )


def _case(row: dict[str, Any]) -> dict[str, Any]:
    """Of a line of `answers.jsonl`: turns, and both answers with what the first judge prefers."""
    prompt = row["prompt"]
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    preference = next(iter(row["preferences"].values()), None) or 0.0
    sides = [
        {**row[side], "side": side, "preferred": sign * preference > 0}
        for side, sign in (("reference", -1), ("policy", 1))
    ]
    alike = row["reference"]["text"] == row["policy"]["text"]
    return {"turns": turns, "source": row["source"], "sides": sides, "alike": alike}


def _samples(path: Path) -> list[tuple[str, str]]:
    """The first and the last block of `samples.md`: (step, text)."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    blocks = re.split(r"^## Step (\d+)$", text, flags=re.M)[1:]
    steps = list(zip(blocks[::2], (block.strip() for block in blocks[1::2]), strict=True))
    return [steps[0], steps[-1]] if len(steps) > 1 else []


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.is_file() else []
