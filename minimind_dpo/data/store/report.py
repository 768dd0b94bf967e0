"""The data report: what the run is about to train on, and what it is not, and why.

Collected while pairs are tokenised, kept with the token store, printed before training, and the
same as plain values for `summary.json`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.read.pairs import FileSummary
from minimind_dpo.data.tokenize.pair_tokenizer import Dropped, Encoded

QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""Which quantiles of the lengths are reported."""

_EMPTY_SHOWN = 3

REASONS = {
    "identical": "both sides the same",
    "no_signal": "both sides the same once cut",
    "template": "refused by the chat template",
}
"""Kinds of `Dropped` for people."""


@dataclass(slots=True)
class ReportBuilder:
    """Counts while pairs go by.

    Attributes:
        files: Summary of each file read.
        cut: Tokenised pairs whose prompt, chosen or rejected side lost tokens.
        dropped: Pairs not kept, by kind.
        duplicates: Kept pairs that are the same, token by token, as one kept before.
        reasoning_lost: Kept pairs whose template printed an answer without its reasoning.
        empty: Sources of kept pairs whose chosen or rejected answer says nothing.
        largest_id: The largest token id.
    """

    files: list[FileSummary] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    reasoning_lost: int = 0
    empty: dict[str, list[str]] = field(default_factory=lambda: {"chosen": [], "rejected": []})
    largest_id: int = 0
    _seen: set[bytes] = field(default_factory=set)

    def add(self, read: PreferencePair, result: Encoded | Dropped) -> None:
        """Count one pair, as it was read and as it was tokenised."""
        if isinstance(result, Dropped):
            self.dropped[result.kind] += 1
            return
        pair = result.pair
        for side, answer in (("chosen", read.chosen), ("rejected", read.rejected)):
            if _is_empty(answer):
                self.empty[side].append(read.source)
        self.cut["prompt"] += result.prompt_cut
        self.cut["chosen"] += result.chosen_cut
        self.cut["rejected"] += result.rejected_cut
        self.reasoning_lost += result.reasoning_lost
        parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        self.largest_id = max(self.largest_id, *(int(part.max()) for part in parts))
        lengths = np.array([len(part) for part in parts], np.int64)
        key = hashlib.blake2b(lengths.tobytes(), digest_size=16)
        for part in parts:
            key.update(part.tobytes())
        self.duplicates += key.digest() in self._seen
        self._seen.add(key.digest())

    def build(self, lengths: np.ndarray, max_length: int) -> dict[str, Any]:
        """The report as plain values.

        Args:
            lengths: int (n, 3), tokens of prompt, chosen and rejected of the kept pairs.
            max_length: Width of the rectangle that the padding share is told for.
        """
        prompt, chosen, rejected = np.asarray(lengths, np.int64).T
        rows = 2 * prompt + chosen + rejected
        return {
            "pairs": len(lengths),
            "files": [_file(summary) for summary in self.files],
            "skipped_lines": sum(summary.problems for summary in self.files),
            "ignored_turns": sum(summary.ignored_turns for summary in self.files),
            "dropped": {kind: self.dropped[kind] for kind in REASONS},
            "truncated": {side: self.cut[side] for side in ("prompt", "chosen", "rejected")},
            "duplicates": self.duplicates,
            "reasoning_lost": self.reasoning_lost,
            "empty": {side: len(sources) for side, sources in self.empty.items()},
            "empty_first": {side: sources[:_EMPTY_SHOWN] for side, sources in self.empty.items()},
            "tokens": {
                name: _quantiles(values)
                for name, values in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected))
            },
            "total_tokens": int(rows.sum()),
            "scored_tokens": int((chosen + rejected).sum()),
            "largest_id": self.largest_id,
            "chosen_longer": float((chosen > rejected).mean()),
            "same_length": float((chosen == rejected).mean()),
            "max_length": max_length,
            "padding_share": float(1 - rows.sum() / (2 * max_length * len(lengths))),
        }


def _is_empty(answer: Message | str) -> bool:
    if isinstance(answer, str):
        return not answer.strip()
    return not (
        answer["content"].strip() or answer.get("tool_calls") or answer.get("reasoning_content")
    )


def _file(summary: FileSummary) -> dict[str, Any]:
    return {
        "name": summary.name,
        "formats": dict(summary.formats),
        "pairs": summary.pairs,
        "skipped_lines": summary.problems,
        "ignored_turns": summary.ignored_turns,
        "ignored_columns": sorted(map(str, summary.ignored_columns)),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantiles that are lengths of real pairs (the nearest rank below), and the mean."""
    points = np.quantile(values, list(QUANTILES.values()), method="lower")
    named = {name: int(point) for name, point in zip(QUANTILES, points, strict=True)}
    return {**named, "mean": round(float(values.mean()), 1)}


def print_report(
    report: dict[str, Any],
    console: Console | None = None,
    title: str = "Preference data",
    unused: Path | None = None,
) -> None:
    """Print the report to a terminal; `unused` is the file that lists what was left out."""
    (console or Console()).print(render_report(report, title, unused))


def render_report(
    report: dict[str, Any], title: str = "Preference data", unused: Path | None = None
) -> RenderableType:
    """The report for a terminal."""
    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify, grid.title_style = title, "left", "bold"
    for name, value in _facts(report):
        grid.add_row(name, Text(value))
    if unused is not None and (report["skipped_lines"] or any(report["dropped"].values())):
        grid.add_row("all left out", Text(str(unused)))
    for warning in _warnings(report):
        grid.add_row(Text("warning", "yellow"), Text(warning, "yellow"))
    tokens = Table(box=None, pad_edge=False, header_style="")
    tokens.add_column("")
    for name in (*QUANTILES, "mean"):
        tokens.add_column(name, justify="right")
    for side, points in report["tokens"].items():
        tokens.add_row(side, *(f"{points[name]:,}" for name in (*QUANTILES, "mean")))
    grid.add_row("tokens", tokens)
    return grid


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each line; counts that matter only when they are not zero are left out."""
    facts = [("pairs", f"{report['pairs']:,}")]
    facts += [("file", _file_line(file)) for file in report["files"]]
    if report["skipped_lines"]:
        facts.append(("skipped", f"{report['skipped_lines']:,} lines with problems"))
    dropped = ", ".join(f"{n:,} {REASONS[kind]}" for kind, n in report["dropped"].items() if n)
    facts.append(("dropped", dropped or "none"))
    cut = ", ".join(f"{side} {n:,}" for side, n in report["truncated"].items() if n)
    facts.append((f"cut to {report['max_length']:,}", cut or "none"))
    facts.append(("duplicates", f"{report['duplicates']:,} (kept)"))
    if report["ignored_turns"]:
        turns = f"{report['ignored_turns']:,} after the last assistant turn"
        facts.append(("ignored turns", turns))
    if report["reasoning_lost"]:
        lost = f"left out by the chat template in {report['reasoning_lost']:,} pairs"
        facts.append(("reasoning", lost))
    facts.append(("chosen is longer", f"{report['chosen_longer']:.1%} of pairs"))
    waste = f"{report['padding_share']:.1%} of a rectangle of {report['max_length']:,}"
    facts.append(("padding", f"{waste} (what a padded layout would waste)"))
    return facts


def _warnings(report: dict[str, Any]) -> list[str]:
    """What is trained on as it is, and is seldom meant."""
    taught = {"chosen": "trained towards", "rejected": "trained away from"}
    found = []
    for side, count in report["empty"].items():
        if count:
            first = report["empty_first"][side]
            more = ", ..." if count > len(first) else ""
            noun = "answer is empty" if count == 1 else "answers are empty"
            where = f"{', '.join(first)}{more}"
            found.append(f"{count:,} {side} {noun}: saying nothing is {taught[side]} ({where})")
    return found


def _file_line(file: dict[str, Any]) -> str:
    formats = ", ".join(
        kind if len(file["formats"]) == 1 else f"{kind} {count:,}"
        for kind, count in file["formats"].items()
    )
    line = f"{file['name']}: {file['pairs']:,} pairs ({formats or 'none recognised'})"
    if file["ignored_columns"]:
        line += f", columns not used: {', '.join(file['ignored_columns'])}"
    return line
