"""Rows of the tables of a run's page, of its summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from minimind_dpo.report.words import Words

Row: TypeAlias = tuple[str, ...]
Plain: TypeAlias = Mapping[str, Any]


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
