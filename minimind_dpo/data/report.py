"""The data report: what a run is about to train on, what it is not, and why; printed before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.store.counts import QUANTILES, REASONS
from minimind_dpo.data.store.token_store import TokenStore

_MOST = 0.5
"""Share of pairs from which on a cut is warned of."""


def print_data_report(data: PreferenceDataModule, console: Console | None = None) -> None:
    """Print what is trained on and what validates, once the data is prepared."""
    (console or Console()).print(render_data_report(data))


def render_data_report(data: PreferenceDataModule) -> RenderableType:
    """The report for a terminal."""
    train, val = data.train_store, data.val_store
    assert train is not None
    padded = data.options.layout == "padded"
    split = [("split", _split_line(data))]
    grids = [_grid("Training data", train.report, train.unused, split, padded)]
    if val is not None and val is not train:
        shared = _overlap_warnings(train, val)
        grids.append(_grid("Validation data", val.report, val.unused, [], padded, shared))
    return Group(*grids)


def _split_line(data: PreferenceDataModule) -> str:
    """Pairs on either side after the split, and what to do where none validates."""
    pairs = f"{len(data.train_rows):,} pairs for training"
    if len(data.val_rows):
        how = "from data.val" if data.options.val else "split off by prompt"
        return f"{pairs}, {len(data.val_rows):,} for validation ({how})"
    why = (
        "data.val_fraction=0"
        if data.options.val_fraction == 0
        else "too few prompts to split any off"
    )
    return f"{pairs}, no validation ({why}; data.val names a file for it)"


def _overlap_warnings(train: TokenStore, val: TokenStore) -> list[str]:
    """Validation pairs that are trained on: they measure memory."""
    warnings = []
    same = np.flatnonzero(np.isin(val.pair_hash, train.pair_hash))
    if len(same):
        first = val.source(int(same[0]))
        warnings.append(
            f"{len(same):,} of {len(val):,} validation pairs stand in the training data as well "
            f"({first} first): validation measures memory there. Take them out of one of the two"
        )
    prompts = int(np.isin(val.prompt_hash, train.prompt_hash).sum()) - len(same)
    if prompts:
        warnings.append(
            f"{prompts:,} of {len(val):,} validation pairs share their prompt with a training pair"
        )
    return warnings


def _grid(
    title: str,
    report: dict[str, Any],
    unused: Path,
    facts: Sequence[tuple[str, str]],
    padded: bool,
    warnings: Sequence[str] = (),
) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify, grid.title_style = title, "left", "bold"
    for name, value in (*_facts(report, padded), *facts):
        grid.add_row(name, Text(value))
    if report["skipped_lines"] or any(report["dropped"].values()):
        grid.add_row("all left out", Text(str(unused)))
    plain = _plain_warnings(report)
    for warning in (*plain, *_cut_warnings(report), *_empty_warnings(report), *warnings):
        grid.add_row(Text("warning", "yellow"), Text(warning, "yellow"))
    grid.add_row("tokens", _token_table(report))
    return grid


def _token_table(report: dict[str, Any]) -> Table:
    tokens = Table(box=None, pad_edge=False, header_style="")
    tokens.add_column("")
    for name in (*QUANTILES, "mean"):
        tokens.add_column(name, justify="right")
    for side, points in report["tokens"].items():
        tokens.add_row(side, *(f"{points[name]:,}" for name in (*QUANTILES, "mean")))
    return tokens


def _facts(report: dict[str, Any], padded: bool) -> list[tuple[str, str]]:
    """Name and text of each line; counts that matter only when they are not zero are left out."""
    facts = [("pairs", f"{report['pairs']:,}")]
    facts += [("file", _file_line(file)) for file in report["files"]]
    if report["skipped_lines"]:
        lines = "line" if report["skipped_lines"] == 1 else "lines"
        facts.append(("skipped", f"{report['skipped_lines']:,} {lines} with problems"))
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
    for name, count in report["unread"].items():
        facts.append((name, f"not read by the chat template ({count:,} pairs have it)"))
    facts.append(("chosen is longer", f"{report['chosen_longer']:.1%} of pairs"))
    if padded:
        share = f"{report['padding_share']:.1%} of a rectangle of {report['max_length']:,}"
        facts.append(("padding", share))
    return facts


def _plain_warnings(report: dict[str, Any]) -> list[str]:
    """Plain text that a chat template could render."""
    if not report["skips_template"]:
        return []
    return [
        f"{report['skips_template']:,} pairs are plain text, trained on without the chat template; "
        "data.text_as_turns=true renders them as turns of a user and an assistant"
    ]


def _cut_warnings(report: dict[str, Any]) -> list[str]:
    """Sides that lose tokens in most pairs: a prompt its beginning, an answer its end."""
    most = {s: n for s, n in report["truncated"].items() if n > _MOST * report["pairs"]}
    if not most:
        return []
    keys = {"max_length"} | {
        "max_prompt_length" if side == "prompt" else "max_completion_length" for side in most
    }
    limits = [f"data.{key} from {report[key]:,}" for key in sorted(keys) if report[key]]
    sides = ", ".join(
        f"{count:,} prompts (their beginning)"
        if side == "prompt"
        else f"{count:,} {side} answers (their end)"
        for side, count in most.items()
    )
    return [f"of {report['pairs']:,} pairs are cut: {sides}. Raise {' or '.join(limits)}"]


def _empty_warnings(report: dict[str, Any]) -> list[str]:
    """Answers without content, which are trained on as they are."""
    taught = {"chosen": "trained towards", "rejected": "trained away from"}
    warnings = []
    for side, count in report["empty"].items():
        if count:
            first = report["empty_first"][side]
            more = ", ..." if count > len(first) else ""
            noun = "answer is empty" if count == 1 else "answers are empty"
            where = f"{', '.join(first)}{more}"
            warnings.append(f"{count:,} {side} {noun}: saying nothing is {taught[side]} ({where})")
    return warnings


def _file_line(file: dict[str, Any]) -> str:
    formats = ", ".join(
        kind if len(file["formats"]) == 1 else f"{kind} {count:,}"
        for kind, count in file["formats"].items()
    )
    line = f"{file['name']}: {file['pairs']:,} pairs ({formats or 'none recognised'})"
    if file["ignored_columns"]:
        line += f", columns not used: {', '.join(file['ignored_columns'])}"
    return line
