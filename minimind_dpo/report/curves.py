"""Curves of a run as small drawings in SVG, without a drawing library: training needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from minimind_dpo.report.words import Words

Points = list[tuple[float, float]]
Place = Callable[[float, float], tuple[float, float]]

WIDTH, HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 16, 8, 24
_COLOURS: Final = ("#2563eb", "#d97706")
_MOST: Final = 300
"""Points of a line; more are averaged in groups."""

STYLE: Final = """
svg { width: 100%; height: auto; display: block }
svg text { font-size: 11px; fill: #666 } .y { text-anchor: end } .x { text-anchor: middle }
.grid { stroke: #e3e3e3 } polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.legend { font-size: .85rem; color: #555 }
"""
"""Of drawings, in the page that they stand in."""

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


def charts(rows: Sequence[dict[str, str]], words: Words) -> list[tuple[str, str]]:
    """Title and drawing in SVG of what the rows of a `metrics.csv` have of `_CHARTS`."""
    drawn = []
    for name, columns in _CHARTS.items():
        lines = {column: points_of(rows, column) for column in columns}
        lines = {column: points for column, points in lines.items() if points}
        if lines:
            labels = {words.curve(column): points for column, points in lines.items()}
            drawn.append((words[f"chart_{name}"], draw(labels, words["step"])))
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
    frame, place = _frame([p for points in lines.values() for p in points], [*lines], x_label)
    marks = []
    for points, colour in zip(lines.values(), _COLOURS, strict=False):
        at = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        marks.append(f'<polyline points="{at}" style="stroke:{colour}"/>')
        if len(points) == 1:
            marks.append(_dot(*place(*points[0]), colour))
    return f"{frame}{''.join(marks)}</svg>{_legend([*lines], _COLOURS)}"


def scatter(groups: dict[str, tuple[Points, Points]], x_label: str) -> str:
    """A drawing of groups of points by their labels, from dark to light.

    Args:
        groups: Of each the points, and others that are drawn small and faint; one in all at least.
        x_label: What x is, in the drawing's title.
    """
    points = [p for both in groups.values() for each in both for p in each]
    frame, place = _frame(points, [*groups], x_label)
    last = max(1, len(groups) - 1)
    colours = [
        f"hsl({265 - 205 * n / last:.0f} 65% {30 + 20 * n / last:.0f}%)" for n in range(last + 1)
    ]
    marks = []
    for (large, faint), colour in zip(groups.values(), colours, strict=False):
        marks += [_dot(*place(*p), f"{colour};opacity:.35", 2) for p in faint]
        marks += [_dot(*place(*p), colour, 4) for p in large]
    return f"{frame}{''.join(marks)}</svg>{_legend([*groups], colours)}"


def _dot(x: float, y: float, style: str, radius: int = 3) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="fill:{style}"/>'


def _frame(points: Points, labels: Sequence[str], x_label: str) -> tuple[str, Place]:
    """The beginning of a drawing with its grid, and where in it a point is."""
    xs, ys = zip(*points, strict=True)
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
    parts.append(f"<title>{escape(', '.join(labels))} ({escape(x_label)})</title>")
    return "".join(parts), place


def _legend(labels: Sequence[str], colours: Sequence[str]) -> str:
    marks = (
        f'<span style="color:{colour}">&#9644;</span> {escape(label)}'
        for label, colour in zip(labels, colours, strict=False)
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
