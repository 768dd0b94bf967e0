"""Draw the picture of the README from a run of the demo: `python tools/make_picture.py RUN`.

Left: the curves of training. Right: answers to held-out prompts before and after, by the demo's
judge. Needs matplotlib (extra `bench`).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "minimind_dpo", "font.size": 9, "svg.fonttype": "path"})

import matplotlib.pyplot as plt  # noqa: E402

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "images" / "demo.svg"
BEFORE, AFTER = "#9aa5b1", "#2f6f9f"


def curve(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a column where it has any."""
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    return [step for step, _ in points], [value for _, value in points]


def draw(run: Path) -> None:
    """Write the picture of one run folder."""
    with (run / "csv" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.7), width_ratios=(3, 2))
    left.plot(*curve(rows, "train/loss"), color=AFTER, label="loss")
    left.plot(*curve(rows, "train/rewards/margins"), color="#c76b29", label="reward margin")
    left.plot(
        *curve(rows, "val/rewards/accuracies"), "o-", color="#4c9a57", label="held-out accuracy"
    )
    left.set_xlabel("optimizer step")
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
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
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
