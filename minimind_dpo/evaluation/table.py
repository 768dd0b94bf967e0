"""The verdict as a table, of the content of `verdict.json`: for the terminal and a run's page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

from rich import box
from rich.table import Table
from rich.text import Text as Styled

from minimind_dpo.evaluation.judged import BETTER, WORSE
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.text import Text, chinese

Row: TypeAlias = tuple[str, ...]
"""Label, reference, policy, change."""
Plain: TypeAlias = Mapping[str, Any]

FEWEST: Final = 5
"""Pairs below which a part of them is left out of the table."""

_STYLE: Final = {BETTER: "bold green", WORSE: "bold red"}
_AT_EQUAL_LENGTH: Final = Text("  at equal length", "  等长时")
_COSTS: Final = {
    "length": (Text("tokens an answer", "每个回答的词元"), ".1f", True),
    "ended": (Text("answers that end", "正常结束的回答"), ".0%", False),
    "repetition": (Text("repeated 4-grams", "重复的四元组"), ".1%", False),
    "perplexity": (Text("perplexity of {}", "{}的困惑度"), ".1f", True),
}
"""Label, form of both models' numbers, and whether the change is a ratio."""
_PARTS: Final = {
    "zh": "中文",
    "en": "英文",
    "other": "其他",
    "chosen longer": "优选更长",
    "equal": "等长",
    "rejected longer": "劣选更长",
}
"""Parts of the held-out pairs in Chinese; files are called as they are."""


def table(verdict: Plain) -> Table:
    """What the sentence is made of, for the terminal."""
    title = f"Verdict on {verdict['prompts']} held-out prompts: {verdict['decision']}"
    trusted = [judge["sentence"] for judge in _judges(verdict)]
    grid = Table(
        title=title,
        caption=Styled("\n".join(["[low, high]: 95% over prompts", *trusted])),
        box=box.ROUNDED,
        title_style=_STYLE.get(verdict["decision"], "bold"),
        caption_style="dim",
    )
    for name in ("", "reference", "policy", "change"):
        grid.add_column(name, justify="left" if not name else "right", no_wrap=bool(name))
    for row in verdict_rows(verdict):
        grid.add_row(*row)
    for alarm in verdict["alarms"]:
        grid.add_row(Styled(alarm, style="bold red"), "", "", "")
    return grid


def verdict_rows(verdict: Plain, language: str = "en") -> Iterator[Row]:
    """The rows of the table.

    Args:
        verdict: The content of `verdict.json`.
        language: `en` or `zh`.
    """
    for label, *numbers, change in (
        *_judge_rows(verdict),
        *_cost_rows(verdict),
        *_pair_rows(verdict["pairs"]),
    ):
        if language == "zh":
            label, change = chinese(label), chinese(change)
        yield (label, *numbers, change)


def _judges(verdict: Plain) -> Iterator[Plain]:
    yield from filter(None, (verdict["judge"], verdict["also"]))


def _judge_rows(verdict: Plain) -> Iterator[Row]:
    for judge in _judges(verdict):
        name = Text(f"win rate, judge {judge['name']}", f"胜率，裁判 {judge['name']}")
        if judge["win_rate"] is None or not judge["can_judge"]:
            yield (name, "", "", Text("cannot judge", "无法评判"))
        else:
            yield (name, "", "", _percent(judge["win_rate"]))
            yield (_AT_EQUAL_LENGTH, "", "", _percent(judge["length_controlled"]))
        if judge["accuracy"]:
            right = Text("  right on held-out pairs", "  在留出偏好对上判对")
            yield (right, "", "", _percent(judge["accuracy"]))
        if agreement := judge.get("agreement"):
            n = agreement["n"]
            alike = Text(f"  agreement, {n} decided", f"  一致，{n} 个都分出胜负")
            yield (alike, "", "", _percent(agreement))


def _cost_rows(verdict: Plain) -> Iterator[Row]:
    costs, facts = verdict["costs"], verdict["facts"]
    yield (Text("KL, nats an answer", "KL，奈特/回答"), "", "", _interval(costs["kl"]))
    yield (Text("KL, nats a token", "KL，奈特/词元"), "", "", _interval(costs["kl_per_token"]))
    for name, (label, form, is_ratio) in _COSTS.items():
        if cost := costs[name]:
            sides = (format(cost[side], form) for side in ("reference", "policy"))
            text = costs["text"]
            of = Text(label.format(text), label.zh.format("提示" if text == "prompts" else text))
            yield (of, *sides, _change(cost["change"], is_ratio))
    if facts is not None:
        known, lost, gained = facts["known"], facts["lost"], facts["gained"]
        change = Text(f"{lost} lost, {gained} gained", f"丢失 {lost}，新增 {gained}")
        yield (Text("facts known", "答对的事实"), str(known), str(known - lost + gained), change)


def _pair_rows(pairs: Plain | None) -> Iterator[Row]:
    if pairs is None:
        return
    accuracy, n = pairs["all"]["accuracy"], pairs["all"]["accuracy"]["n"]
    ranked = Text(f"{n} held-out pairs ranked", f"{n} 个留出偏好对排对")
    yield (ranked, "", "", _percent(accuracy))
    yield (_AT_EQUAL_LENGTH, "", "", _percent(pairs["equal_length"]["accuracy"]))
    for parts in pairs["by"].values():
        shares = {name: part["accuracy"] for name, part in parts.items()}
        told = {name: share for name, share in shares.items() if share["n"] >= FEWEST}
        for name, share in told.items() if len(told) > 1 else ():
            of = share["n"]
            label = Text(f"  {name}, {of}", f"  {_PARTS.get(name, name)}，{of}")
            yield (label, "", "", _percent(share))
    margin = Text("  margin over beta, nats", "  奖励差除以 beta，奈特")
    yield (margin, "", "", _interval(pairs["all"]["margin"]))
    chosen = Text("  log-likelihood of chosen", "  优选回答的对数似然")
    yield (chosen, "", "", _interval(pairs["chosen"]))


def _percent(estimate: Plain) -> str:
    return Estimate(**estimate).percent()


def _interval(estimate: Plain) -> str:
    value, low, high = (f"{estimate[key]:.3g}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _change(change: Plain, is_ratio: bool) -> str:
    value, low, high = (100 * (change[key] - is_ratio) for key in ("value", "low", "high"))
    return f"{value:+.1f}{'%' if is_ratio else ''} [{low:+.1f}, {high:+.1f}]"
