"""Curves of a run as small drawings in SVG, without a drawing library: training needs none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from minimind_dpo.report.words import Words

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 16, 8, 24
_COLOURS: Final = ("#2563eb", "#d97706")
_MOST: Final = 300
"""Points of a line; more are averaged in groups."""

_CHARTS: Final = {
    "loss": ("train/loss", "val/loss"),
    "accuracies": ("train/rewards/accuracies", "val/rewards/accuracies"),
    "margins": ("train/rewards/margins", "val/rewards/margins"),
    "rewards": ("val/rewards/chosen", "val/rewards/rejected"),
    "logps": ("val/logps/chosen", "val/logps/rejected"),
    "grad_norm": ("train/grad_norm",),
    "learning_rate": ("train/learning_rate",),
}
"""Which columns of `metrics.csv` are drawn together."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing.

    Attributes:
        title: Above it.
        svg: The drawing.
    """

    title: str
    svg: str


def charts(rows: Sequence[dict[str, str]], words: Words) -> list[Chart]:
    """Drawings of the rows of a `metrics.csv`; none of what was not logged."""
    drawn = []
    for name, columns in _CHARTS.items():
        lines = {column: points_of(rows, column) for column in columns}
        lines = {column: points for column, points in lines.items() if points}
        if lines:
            labels = {words.curve(column): points for column, points in lines.items()}
            drawn.append(Chart(words[f"chart_{name}"], draw(labels, words["step"])))
    return drawn


def points_of(rows: Sequence[dict[str, str]], column: str) -> Points:
    """(step, value) of a column, finite ones alone, at most `_MOST` of them."""
    points: Points = []
    for row in rows:
        try:
            x, y = float(row["step"]), float(row[column])
        except (KeyError, ValueError):
            continue
        if math.isfinite(y):
            points.append((x, y))
    group = -(-len(points) // _MOST)
    parts = [points[start : start + group] for start in range(0, len(points), group or 1)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def draw(lines: dict[str, Points], x_label: str) -> str:
    """A drawing of some lines by their labels.

    Args:
        lines: At least one point each; two lines at most.
        x_label: What x is, in the drawing's title.
    """
    xs, ys = ([p[i] for points in lines.values() for p in points] for i in (0, 1))
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(min(xs), x_ticks[0]), max(max(xs), x_ticks[-1])
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, HEIGHT - _BOTTOM - up

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" class="y">{_number(tick)}</text>'
        )
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" class="x">{_number(tick)}</text>')
    parts.append(f"<title>{escape(', '.join(lines))} ({escape(x_label)})</title>")
    for points, colour in zip(lines.values(), _COLOURS, strict=False):
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{at}" style="stroke:{colour}"/>')
        if len(points) == 1:
            x, y = place(*points[0])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>')
    parts += ["</svg>", _legend(list(lines))]
    return "".join(parts)


def _legend(labels: Sequence[str]) -> str:
    marks = (
        f'<span style="color:{colour}">&#9644;</span> {escape(label)}'
        for label, colour in zip(labels, _COLOURS, strict=False)
    )
    return f'<div class="legend">{" &nbsp; ".join(marks)}</div>'


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, three to six of them."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) / 2 or 1.0), high + (abs(high) / 2 or 1.0)
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _number(value: float) -> str:
    text = f"{value:.10g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.0e}"
    return text.replace("-", "\u2212")
