"""What the demo shows at its end: scores before and after."""

from __future__ import annotations

import math

from rich import box
from rich.table import Table
from rich.text import Text

from minimind_dpo.demo.evaluate import DemoScores


def before_after_table(before: DemoScores, after: DemoScores) -> Table:
    """Scores on the same prompts side by side, with what changed and whether that is good."""
    table = Table(
        title="DPO on the embedded demo",
        caption=f"{len(after.answers)} answers to held-out prompts, sampled at temperature 1; "
        "± is one standard error",
        box=box.ROUNDED,
        title_style="bold",
        caption_style="dim",
    )
    table.add_column("held-out prompts")
    for name in ("before", "after", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(
        "preference accuracy",
        *(_percent(each.preference_accuracy) for each in (before, after)),
        _change(before.preference_accuracy, after.preference_accuracy),
    )
    table.add_row(
        Text("answers in the wanted manner", style="bold"),
        *(_share(each.wanted, len(each.answers)) for each in (before, after)),
        _change(before.wanted, after.wanted),
    )
    table.add_row(
        "answers with right content",
        *(_share(each.correct, len(each.answers)) for each in (before, after)),
        _change(before.correct, after.correct, tolerated=0.05 * before.correct),
    )
    table.add_row("KL to the reference, nats", _number(before.kl), _number(after.kl), "")
    table.add_row("tokens an answer", _number(before.mean_tokens), _number(after.mean_tokens), "")
    return table


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _share(share: float, count: int) -> str:
    """A share with its binomial standard error."""
    return f"{share:.1%} ± {100 * math.sqrt(share * (1 - share) / count):.1f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _change(before: float | None, after: float | None, tolerated: float = 0.0) -> Text:
    """Difference of two shares in points: red where it fell by more than is tolerated."""
    if before is None or after is None:
        return Text("–")
    style = "bold green" if after > before else "" if before - after <= tolerated else "bold red"
    return Text(f"{100 * (after - before):+.1f}", style=style)
