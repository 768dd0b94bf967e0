"""The verdict as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from rich import box
from rich.table import Table
from rich.text import Text

from minimind_dpo.evaluation.judged import BETTER, WORSE
from minimind_dpo.evaluation.measures import Change
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.verdict import Verdict

Row: TypeAlias = tuple[str, str, str, str]
"""Label, reference, policy, change."""

FEWEST = 5
"""Pairs below which a part of them is left out of the table."""

_STYLE = {BETTER: "bold green", WORSE: "bold red"}


def table(verdict: Verdict) -> Table:
    """What the sentence is made of, for the terminal."""
    title = f"Verdict on {len(verdict.cases)} held-out prompts: {verdict.decision}"
    grid = Table(
        title=title,
        caption=Text("\n".join(["[low, high]: 95% over prompts", *_trusted(verdict)])),
        box=box.ROUNDED,
        title_style=_STYLE.get(verdict.decision, "bold"),
        caption_style="dim",
    )
    for name in ("", "reference", "policy", "change"):
        grid.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    for row in (*_judge_rows(verdict), *_cost_rows(verdict), *_pair_rows(verdict)):
        grid.add_row(*row)
    for alarm in verdict.alarms:
        grid.add_row(Text(alarm, style="bold red"), "", "", "")
    return grid


def _trusted(verdict: Verdict) -> Iterator[str]:
    for judged in filter(None, (verdict.judged, verdict.also)):
        yield judged.sentence


def _judge_rows(verdict: Verdict) -> Iterator[Row]:
    for judged in filter(None, (verdict.judged, verdict.also)):
        rate, controlled = judged.win_rate, judged.length_controlled
        name = f"win rate, judge {judged.judge}"
        if rate is None or controlled is None or not judged.trust.can_judge:
            yield (name, "", "", "cannot judge")
        else:
            yield (name, "", "", rate.percent())
            yield ("  at equal length", "", "", controlled.percent())
        if judged.trust.accuracy:
            yield ("  right on held-out pairs", "", "", judged.trust.accuracy.percent())
    if verdict.agreement is not None:
        agreement = verdict.agreement
        yield (f"  agreement, {agreement.n} decided", "", "", agreement.percent())


def _cost_rows(verdict: Verdict) -> Iterator[Row]:
    costs, facts = verdict.costs, verdict.facts
    yield ("KL, nats an answer", "", "", _interval(costs.kl))
    yield ("KL, nats a token", "", "", _interval(costs.kl_per_token))
    yield ("tokens an answer", *_both(costs.length, ".1f"), _ratio(costs.length))
    yield ("answers that end", *_both(costs.ended, ".0%"), _points(costs.ended))
    yield ("repeated 4-grams", *_both(costs.repetition, ".1%"), _points(costs.repetition))
    if costs.perplexity is not None:
        name = f"perplexity of {costs.text}"
        yield (name, *_both(costs.perplexity, ".1f"), _ratio(costs.perplexity))
    if facts is not None:
        policy = facts.known - facts.lost + facts.gained
        change = f"{facts.lost} lost, {facts.gained} gained"
        yield ("facts known", str(facts.known), str(policy), change)


def _pair_rows(verdict: Verdict) -> Iterator[Row]:
    pairs = verdict.pairs
    if pairs is None:
        return
    yield (f"{pairs.all.accuracy.n} held-out pairs ranked", "", "", pairs.all.accuracy.percent())
    yield ("  at equal length", "", "", pairs.equal_length.accuracy.percent())
    for parts in pairs.by.values():
        told = {name: ranking for name, ranking in parts.items() if ranking.accuracy.n >= FEWEST}
        for name, ranking in told.items() if len(told) > 1 else ():
            yield (f"  {name}, {ranking.accuracy.n}", "", "", ranking.accuracy.percent())
    yield ("  margin over beta, nats", "", "", _interval(pairs.all.margin))
    yield ("  log-likelihood of chosen", "", "", _interval(pairs.chosen))


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def _both(change: Change, form: str) -> tuple[str, str]:
    return format(change.reference, form), format(change.policy, form)


def _ratio(change: Change) -> str:
    value, low, high = (
        100 * (x - 1) for x in (change.change.value, change.change.low, change.change.high)
    )
    return f"{value:+.1f}% [{low:+.1f}, {high:+.1f}]"


def _points(change: Change) -> str:
    value, low, high = (
        100 * x for x in (change.change.value, change.change.low, change.change.high)
    )
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
