"""The counts of the data report: what was read, dropped and cut.

Collected while pairs are tokenised and kept with the token store as plain values.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.read.pairs import FileSummary
from minimind_dpo.data.tokenize.pair_tokenizer import Dropped, Encoded

QUANTILES = {"min": 0.0, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
"""Which quantiles of the lengths are reported."""

_EMPTY_SHOWN = 3

REASONS = {
    "identical": "both sides the same",
    "no_signal": "both sides the same once cut",
    "template": "not rendered by the chat template",
}
"""Kinds of `Dropped`, as messages name them."""


@dataclass(slots=True)
class ReportBuilder:
    """Counts while pairs go by.

    Attributes:
        files: Summary of each file read.
        cut: Tokenised pairs whose prompt, chosen or rejected side lost tokens.
        dropped: Pairs not kept, by kind.
        duplicates: Kept pairs that are the same, token by token, as one kept before.
        reasoning_lost: Kept pairs whose template printed an answer without its reasoning.
        skips_template: Kept pairs of plain text, where there is a chat template.
        unread: Kept pairs with tools, or a template option, that the template does not read.
        empty: Sources of kept pairs whose chosen or rejected answer says nothing.
        largest_id: The largest token id.
    """

    files: list[FileSummary] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    reasoning_lost: int = 0
    skips_template: int = 0
    unread: Counter[str] = field(default_factory=Counter)
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
        self.reasoning_lost += result.texts.reasoning_lost
        self.skips_template += result.texts.skips_template
        self.unread.update(result.texts.unread)
        parts = (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
        self.largest_id = max(self.largest_id, *(int(part.max()) for part in parts))
        lengths = np.array([len(part) for part in parts], np.int64)
        key = hashlib.blake2b(lengths.tobytes(), digest_size=16)
        for part in parts:
            key.update(part.tobytes())
        self.duplicates += key.digest() in self._seen
        self._seen.add(key.digest())

    def build(self, lengths: np.ndarray, limits: Mapping[str, Any]) -> dict[str, Any]:
        """The report as plain values, of int (n, 3) lengths of the stored pairs, and the limits."""
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
            "skips_template": self.skips_template,
            "unread": dict(self.unread),
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
            **limits,
            "padding_share": float(1 - rows.sum() / (2 * limits["max_length"] * len(lengths))),
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
    lengths = {name: int(point) for name, point in zip(QUANTILES, points, strict=True)}
    return {**lengths, "mean": round(float(values.mean()), 1)}
