"""The same numbers as a picture: time, share of the matrix rate and memory, by way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from speed.report import Summary

_OURS, _PEER, _PALE = "#2a6f97", "#b0803a", "#c9d6df"


def draw(summaries: Sequence[Summary], device: str, title: str, path: Path) -> None:
    """Write a PNG with one bar a way in each of three panels."""
    figure = Figure(figsize=(12, 1.2 + 0.42 * len(summaries)), layout="constrained")
    time_axis, share_axis, memory_axis = figure.subplots(1, 3, sharey=True)
    ways = [row.way for row in summaries]
    colours = [_PEER if way.startswith(("notebook", "trl")) else _OURS for way in ways]
    unit = "CPU-seconds" if device == "cpu" else "seconds"
    times = [row.cpu_seconds if device == "cpu" else row.wall_seconds for row in summaries]
    time_axis.bar_label(time_axis.barh(ways, times, color=colours), fmt="%.3g", padding=3)
    time_axis.set_xlabel(f"{unit} a pair")
    share_axis.barh(ways, [100 * row.executed_share for row in summaries], color=_PALE)
    bars = share_axis.barh(ways, [100 * row.useful_share for row in summaries], color=colours)
    share_axis.bar_label(bars, fmt="%.0f", padding=3)
    share_axis.set_xlabel("% of the matmul rate: needed (pale: all that was computed)")
    sizes = [row.peak_bytes / 2**30 for row in summaries]
    memory_axis.bar_label(memory_axis.barh(ways, sizes, color=colours), fmt="%.2f", padding=3)
    memory_axis.set_xlabel("peak memory, GiB")
    for axis in (time_axis, share_axis, memory_axis):
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    time_axis.invert_yaxis()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
