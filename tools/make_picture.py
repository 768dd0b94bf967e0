"""Draw the picture of the README: `python tools/make_picture.py RUN SWEEP`.

Left: win rate against KL of a sweep over beta (`-m +sweep=demo`), a point a run and fainter ones on
the way. Right: answers of a run of the demo to held-out prompts before and after, by the demo's own
program. Needs matplotlib (extra `report`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "minimind_dpo", "font.size": 9, "svg.fonttype": "path"})

import matplotlib.pyplot as plt  # noqa: E402

from minimind_dpo.report.sweep import SweepReport, draw_frontier  # noqa: E402

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.svg"
BEFORE, AFTER = "#9aa5b1", "#2f6f9f"


def draw(run: Path, sweep: Path) -> None:
    """Write the picture."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.0), width_ratios=(3, 2))
    draw_frontier(left, SweepReport.of(sweep).settings)
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


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
