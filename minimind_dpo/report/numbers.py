"""Rows of the tables of a run's page, of its summary and its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from minimind_dpo.report.words import Words, percent

Row: TypeAlias = tuple[str, ...]
Plain: TypeAlias = Mapping[str, Any]


def verdict_rows(verdict: Plain, words: Words) -> Iterator[Row]:
    """What, reference, policy, change."""
    for judge in filter(None, (verdict["judge"], verdict["also"])):
        name, rate = words["win_rate"].format(judge["name"]), judge["win_rate"]
        if rate is None or not judge["can_judge"]:
            yield (name, "", "", words["cannot_judge"])
        else:
            yield (name, "", "", percent(rate))
            yield (words["at_equal_length"], "", "", percent(judge["length_controlled"]))
        if judge["accuracy"] is not None:
            yield (words["right_on_pairs"], "", "", percent(judge["accuracy"]))
        if judge.get("agreement"):
            yield (words["agreement"], "", "", percent(judge["agreement"]))
    yield from _cost_rows(verdict, words)
    pairs = verdict["pairs"]
    if pairs is not None:
        yield (words["pairs_ranked"], "", "", percent(pairs["all"]["accuracy"]))


def _cost_rows(verdict: Plain, words: Words) -> Iterator[Row]:
    costs, facts = verdict["costs"], verdict["facts"]
    kl = costs["kl"]
    yield (words["kl"], "", "", f"{kl['value']:.3g} [{kl['low']:.3g}, {kl['high']:.3g}]")
    for name, form, ratio in (
        ("length", "{:.1f}", True),
        ("ended", "{:.0%}", False),
        ("repetition", "{:.1%}", False),
        ("perplexity", "{:.1f}", True),
    ):
        cost = costs[name]
        if cost is not None:
            sides = (form.format(cost[side]) for side in ("reference", "policy"))
            label = words[name].format(costs["text"])
            yield (label, *sides, _change(cost["change"], ratio))
    if facts is not None:
        policy = facts["known"] - facts["lost"] + facts["gained"]
        change = words["facts_change"].format(facts["lost"], facts["gained"])
        yield (words["facts"], str(facts["known"]), str(policy), change)


def _change(change: Plain, ratio: bool) -> str:
    value, low, high = (100 * (change[key] - ratio) for key in ("value", "low", "high"))
    return f"{value:+.1f}{'%' if ratio else ''} [{low:+.1f}, {high:+.1f}]"


def validation_rows(summary: Plain) -> Iterator[Row]:
    """Metric, before training, of the exported weights."""
    before, after = summary["val_before"], summary["val"]
    for name, value in after.items():
        yield (name, f"{before[name]:.4f}" if name in before else "", f"{value:.4f}")


def training_rows(summary: Plain, words: Words) -> Iterator[Row]:
    """What, and how much."""
    model = summary["recognised"]
    millions = f"{model['parameters'] / 1e6:.1f} M"
    yield (words["model"], f"{model['dialect']}, {model['class']}, {millions}")
    yield (words["steps"], f"{summary['steps']:,}")
    yield (words["pairs_seen"], f"{summary['pairs_seen']:,}")
    seconds = (summary["wall_seconds"], summary["training_seconds"])
    yield (words["seconds"], " / ".join(f"{each:,.0f}" for each in seconds))
    yield (words["speed"], f"{summary['pairs_per_second']:.1f}")
    yield (words["bad_steps"], f"{summary['bad_steps']}")
    if summary["weights_changed"] is not None:
        yield (words["weights_changed"], f"{summary['weights_changed']:.1%}")


def data_rows(summary: Plain, words: Words) -> Iterator[Row]:
    """What, and how much."""
    data, report = summary["data"], summary["data"]["train"]
    yield (words["train_pairs"], f"{data['train_pairs']:,}")
    yield (words["val_pairs"], f"{data['val_pairs']:,}")
    yield (
        words["files"],
        ", ".join(f"{file['name']} ({file['pairs']:,})" for file in report["files"]),
    )
    for side in ("prompt", "chosen", "rejected"):
        tokens = report["tokens"][side]
        numbers = " / ".join(f"{tokens[key]:,.0f}" for key in ("median", "p90", "max"))
        yield (f"{words[side]}: {words['tokens']}", numbers)
    yield (words["truncated"], _counts(report["truncated"], words))
    yield (words["dropped"], f"{sum(report['dropped'].values()):,}")
    yield (words["duplicates"], f"{report['duplicates']:,}")
    yield (words["longer"], f"{report['chosen_longer']:.0%}")


def _counts(counts: Plain, words: Words) -> str:
    return ", ".join(f"{words[side]} {count:,}" for side, count in counts.items())
