"""Draw the picture of the README: `python tools/make_picture.py RUN SWEEP`.

Left: win rate against KL of a sweep over beta (`-m +sweep=demo`), a point a run and fainter ones on
the way. Right: answers of a run of the demo to held-out prompts before and after, by the demo's own
program. Needs matplotlib (extra `bench`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "minimind_dpo", "font.size": 9, "svg.fonttype": "path"})

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from minimind_dpo.report.jobs import frontier_of, read_jobs  # noqa: E402
from minimind_dpo.report.settings import compare  # noqa: E402

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.svg"
BEFORE, AFTER = "#9aa5b1", "#2f6f9f"


def draw(run: Path, sweep: Path) -> None:
    """Write the picture."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), width_ratios=(3, 2))
    draw_frontier(left, sweep)
    left.set_title("a sweep over beta: did it get better, at what cost", fontsize=9)
    before, after = summary["demo"]["before"], summary["demo"]["after"]
    names = {"wanted_share": "wanted\nmanner", "correct_share": "right\ncontent"}
    for place, key in enumerate(names):
        values = (100 * before[key], 100 * after[key])
        for shift, value, colour in zip((-0.18, 0.18), values, (BEFORE, AFTER), strict=True):
            right.bar(place + shift, value, 0.34, color=colour)
            right.text(place + shift, value + 1, f"{value:.0f}%", ha="center", va="bottom")
    right.set_xticks(range(len(names)), names.values())
    right.set_ylim(0, 115)
    right.set_title("answers to held-out prompts, before and after", fontsize=9)
    right.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def draw_frontier(axes: Axes, sweep: Path) -> None:
    """Win rate at equal length against KL of each run, the settings from dark to light."""
    settings = compare(read_jobs(sweep))
    for place, setting in enumerate(settings):
        color = mpl.colormaps["viridis"](0.9 * place / max(1, len(settings) - 1))
        ends = frontier_of(job.point for job in setting.jobs)
        earlier = frontier_of(point for job in setting.jobs for point in job.earlier)
        axes.plot(*np.reshape(ends, (-1, 2)).T, "o", color=color, label=setting.name)
        axes.plot(*np.reshape(earlier, (-1, 2)).T, "o", color=color, alpha=0.35, markersize=3)
    axes.axhline(0.5, color="0.7", linewidth=1)
    axes.set_xlabel("KL to the reference, nats an answer")
    axes.set_ylabel("win rate at equal length")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
