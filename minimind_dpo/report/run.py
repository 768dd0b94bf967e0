"""A run's page: the verdict first, then curves, answers before and after, data, settings.

Made of what lies in the run's folder alone, so that it can be made anew at any time, also of a run
that has not finished: `python -m minimind_dpo.report RUN`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from minimind_dpo.disk import read_lines, read_object, read_rows, write_text
from minimind_dpo.evaluation.table import verdict_rows
from minimind_dpo.report.curves import STYLE, charts, draw
from minimind_dpo.report.jobs import frontier_of, read_points
from minimind_dpo.report.numbers import data_rows, training_rows, validation_rows
from minimind_dpo.report.words import Words

PAGE: Final = "report.html"
SHOWN: Final = 12
"""Prompts whose answers are shown at once; the others are folded away."""


def write_run_report(
    run: Path, language: str = "en", summary: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.html` into a run's folder.

    Args:
        run: With `config.yaml`; all else may be missing.
        language: `en` or `zh`.
        summary: Of a run whose `summary.json` is not written yet.

    Returns:
        The page.
    """
    path = run / PAGE
    write_text(path, run_page(run, Words(language), summary))
    return path


def run_page(run: Path, words: Words, summary: Mapping[str, Any] | None = None) -> str:
    """One page that needs no network and fits a phone.

    Args:
        run: The folder of a run.
        words: Of the page's language.
        summary: Instead of its `summary.json`.
    """
    if summary is None:
        summary = read_object(run / "summary.json")
    verdict = read_object(run / "verdict.json")
    verdict = verdict if "decision" in verdict and "sentence" in verdict else {}
    judges = [judge for key in ("judge", "also") if (judge := verdict.get(key))]
    shown, others = _cases(run / "answers.jsonl", bool(judges) and judges[0].get("can_judge", True))
    environment = Environment(
        loader=PackageLoader("minimind_dpo", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("run.html").render(
        words=words,
        drawing_style=Markup(STYLE.strip()),
        name=run.resolve().name,
        verdict=verdict,
        sentence=_sentence(summary, verdict, words),
        alarms=words.of(verdict, "alarms"),
        verdict_rows=_rows(verdict_rows, verdict, words.language),
        notes=[f"{words.of(judge, 'sentence')} {words.of(judge, 'advice')}" for judge in judges],
        charts=[(title, Markup(svg)) for title, svg in _charts(run, words)],
        shown=shown,
        others=others,
        samples=_samples(run / "samples.md"),
        data_rows=_rows(data_rows, summary, words),
        training_rows=_rows(training_rows, summary, words),
        validation_rows=_rows(validation_rows, summary),
        config=(run / "config.yaml").read_text(encoding="utf-8", errors="replace"),
        versions=summary.get("versions", {}),
    )


def _rows(make: Callable[..., Iterator[tuple[str, ...]]], *content: Any) -> list[tuple[str, ...]]:
    """Rows of a table; none where the numbers are not there, or as an earlier version had them."""
    try:
        return list(make(*content))
    except (AttributeError, LookupError, TypeError, ValueError):
        return []


def _sentence(summary: Mapping[str, Any], verdict: Mapping[str, Any], words: Words) -> str:
    if verdict:
        return str(words.of(verdict, "sentence"))
    if "diverged" in summary:
        return f"{words['diverged']}: {summary['diverged']}"
    return words["no_verdict" if summary else "unfinished"]


def _charts(run: Path, words: Words) -> list[tuple[str, str]]:
    drawn = charts(read_rows(run / "csv" / "metrics.csv")[1], words)
    points = frontier_of(read_points(run / "frontier.jsonl"))
    if len(points) > 1:
        svg = draw({words["policy"]: points}, words["kl"])
        drawn.append((f"{words['chart_frontier']} / {words['kl']}", svg))
    return drawn


def _cases(path: Path, judged: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Prompts with both answers: some whose answers differ, evenly spaced, and all others.

    Args:
        path: Of `answers.jsonl`.
        judged: Whether the first judge can judge, so that it is told what it prefers.

    Raises:
        ValueError: The file is damaged.
    """
    rows = read_lines(path) if path.is_file() else []
    try:
        cases = [_case(row, judged) for row in rows]
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: it holds something else than answers") from error
    differing = [place for place, case in enumerate(cases) if not case["alike"]]
    count = min(SHOWN, len(differing))
    shown = {differing[i * len(differing) // count] for i in range(count)}
    return (
        [case for place, case in enumerate(cases) if place in shown],
        [case for place, case in enumerate(cases) if place not in shown],
    )


def _case(row: dict[str, Any], judged: bool) -> dict[str, Any]:
    """Of a line of `answers.jsonl`: turns, and both answers with what the first judge prefers."""
    prompt = row["prompt"]
    turns = [{"role": "", "content": prompt}] if isinstance(prompt, str) else prompt
    preference = next(iter(row["preferences"].values()), None) or 0.0
    sides = [
        {**row[side], "side": side, "preferred": judged and sign * preference > 0}
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
