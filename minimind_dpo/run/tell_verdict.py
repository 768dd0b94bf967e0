"""A verdict made, shown and kept: what the end of a run and the command `evaluate` both do."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from minimind_dpo.disk import write_lines
from minimind_dpo.evaluation.answers import Lend
from minimind_dpo.evaluation.evaluate import Evaluation
from minimind_dpo.evaluation.table import table
from minimind_dpo.evaluation.verdict import Verdict
from minimind_dpo.run.folder import write_json

log = logging.getLogger(__name__)
console = Console()

VERDICT: Final = "verdict.json"
ANSWERS: Final = "answers.jsonl"


def make_verdict(evaluation: Evaluation, policy: Lend, judge: str, leave_out: str = "") -> Verdict:
    """The verdict on a policy, after saying how long it may take.

    Args:
        evaluation: What compares it.
        policy: The policy.
        judge: Name of the judge.
        leave_out: How to do without, for people.
    """
    by = "" if judge == "none" else f" by judge {judge}"
    log.info(
        f"Verdict on {len(evaluation.task.prompts)} held-out prompts{by}: at most about "
        f"{_duration(evaluation.seconds_ahead(policy))}{leave_out}"
    )
    return evaluation(policy)


def keep_verdict(verdict: Verdict, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `answers.jsonl` and `verdict.json`, and show the table.

    Args:
        verdict: The verdict.
        folder: Where; made if missing.
        facts: What else `verdict.json` begins with.

    Returns:
        The content of `verdict.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / ANSWERS, (case.to_json() for case in verdict.cases))
    content = {**facts, **verdict.to_json()}
    write_json(content, folder / VERDICT)
    console.print(table(content))
    log.info(verdict.sentence)
    for alarm in verdict.alarms:
        log.warning(alarm)
    return content


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
