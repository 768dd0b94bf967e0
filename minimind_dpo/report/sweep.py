"""A sweep's answer: a table in four forms (terminal, Markdown, CSV, HTML), and the frontier drawn.

`val/loss` is not among the columns: its scale depends on beta and on the loss, so that it cannot be
compared between the jobs of a sweep.
"""

from __future__ import annotations

import csv
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from minimind_dpo.disk import write_text
from minimind_dpo.report.curves import STYLE, scatter
from minimind_dpo.report.jobs import Job, frontier_of, read_jobs
from minimind_dpo.report.settings import RULE, Setting, compare, recommend


class Column(NamedTuple):
    """A number of a setting.

    Attributes:
        key: Its name in the verdicts.
        heading: What it is called.
        form: How a mean is written.
        spread: How a standard deviation over seeds is written.
    """

    key: str
    heading: str
    form: str
    spread: str


COLUMNS: Final = (
    Column("win_rate", "wins", "{:.0%}", "{:.1%}"),
    Column("length_controlled", "at equal length", "{:.0%}", "{:.1%}"),
    Column("kl", "KL, nats", "{:.2f}", "{:.2f}"),
    Column("length_ratio", "length", "x{:.2f}", "{:.2f}"),
    Column("repetition", "repetition", "{:.1%}", "{:.1%}"),
    Column("perplexity_ratio", "perplexity", "x{:.2f}", "{:.2f}"),
    Column("pair_accuracy", "pair accuracy", "{:.0%}", "{:.1%}"),
    Column("seconds", "seconds", "{:.0f}", "{:.0f}"),
)

_TERMINAL: Final = {
    "win_rate",
    "length_controlled",
    "kl",
    "length_ratio",
    "perplexity_ratio",
    "pair_accuracy",
}
_SPREAD: Final = {"length_controlled", "kl"}
"""What the recommendation goes by."""

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem }
.wide { overflow-x: auto } table { border-collapse: collapse }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
tr { border-bottom: 1px solid #ddd } .taken { background: #e8f3e8; font-weight: 600 }
figure { margin: 0; max-width: 44rem } .note { color: #555; font-size: .9rem }
"""


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep came to.

    Attributes:
        name: Of its folder.
        jobs: Its runs.
        settings: Their settings, seeds averaged.
        choice: The recommended one, if any.
        sentence: The recommendation.
    """

    name: str
    jobs: list[Job]
    settings: list[Setting]
    choice: Setting | None
    sentence: str

    @classmethod
    def of(cls, sweep: Path) -> SweepReport:
        """Read a sweep's folder.

        Raises:
            ValueError: It holds no job.
        """
        jobs = read_jobs(sweep)
        if not jobs:
            raise ValueError(f"{sweep} holds no job of a sweep (a folder with job.json)")
        settings = compare(jobs)
        choice, sentence = recommend(settings)
        return cls(sweep.resolve().name, jobs, settings, choice, sentence)

    @property
    def heading(self) -> list[str]:
        """Of the table."""
        return ["setting", "runs", *(column.heading for column in COLUMNS), "alarms"]

    @property
    def rows(self) -> list[list[str]]:
        """Of the table, as text."""
        return [
            [
                setting.name,
                f"{len(setting.jobs)} of {len(setting.jobs) + len(setting.left)}",
                *(cell(setting, column) for column in COLUMNS),
                "; ".join(setting.alarms),
            ]
            for setting in self.settings
        ]

    @property
    def judges(self) -> str:
        """Who judged, each once."""
        return ", ".join(dict.fromkeys(job.judge for job in self.jobs if job.judge)) or "nobody"

    @property
    def left(self) -> list[str]:
        """Runs without a result, and why."""
        return [f"{job.number}: {job.left}" for job in self.jobs if job.left]

    def table(self) -> Table:
        """For a terminal of 80 characters; the pages have every number and its spread."""
        columns = [column for column in COLUMNS if column.key in _TERMINAL]
        title = f"Sweep {self.name}, judged by {self.judges}"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
        table.add_column("setting", no_wrap=True)
        for heading in ("runs", *(column.heading for column in columns)):
            table.add_column(heading, justify="right")
        for setting in self.settings:
            runs = f"{len(setting.jobs)}/{len(setting.jobs) + len(setting.left)}"
            cells = [cell(setting, column, column.key in _SPREAD) for column in columns]
            style = "bold green" if setting is self.choice else ""
            table.add_row(setting.name, runs, *cells, style=style)
        return table

    @property
    def remarks(self) -> list[str]:
        """Alarms, and runs without a result, a line each."""
        alarms = [f"{s.name}: {alarm}" for s in self.settings for alarm in s.alarms]
        return [*alarms, *(f"job {line}" for line in self.left)]

    def markdown(self) -> str:
        """The whole report as Markdown."""
        lines = [self.heading, ["---"] * len(self.heading), *self.rows]
        parts = [f"# Sweep {self.name}", "", f"**{self.sentence}**", ""]
        parts += [f"| {' | '.join(line)} |" for line in lines]
        parts += ["", f"Judged by {self.judges}; ± is one standard deviation over seeds. {RULE}"]
        if self.left:
            parts += ["", "Without a result:", "", *(f"- {line}" for line in self.left)]
        return "\n".join(parts) + "\n"

    def csv(self) -> str:
        """One line a run, full precision."""
        keys = list(dict.fromkeys(key for setting in self.settings for key in setting.values))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        numbers = [column.key for column in COLUMNS]
        writer.writerow(["job", "seed", *keys, *numbers, "left"])
        for job in self.jobs:
            values = [job.seconds if key == "seconds" else job.point.get(key) for key in numbers]
            given = [job.settings.get(key, "") for key in ("seed", *keys)]
            writer.writerow([job.number, *given, *values, job.left])
        return text.getvalue()

    def html(self) -> str:
        """One page that needs no network and fits a phone."""
        rows = [
            f"<tr{' class=taken' if setting is self.choice else ''}>"
            + "".join(f"<td>{html.escape(text)}</td>" for text in row)
            + "</tr>"
            for setting, row in zip(self.settings, self.rows, strict=True)
        ]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.heading)
        left = "".join(f"<li>{html.escape(line)}</li>" for line in self.left)
        return (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Sweep {html.escape(self.name)}</title><style>{_STYLE}{STYLE}</style>"
            f"<h1>Sweep {html.escape(self.name)}</h1><p><b>{html.escape(self.sentence)}</b></p>"
            f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
            f'<p class="note">Judged by {html.escape(self.judges)}; &plusmn; is one standard '
            f"deviation over seeds. {html.escape(RULE)}</p>"
            f"<h2>Win rate at equal length against KL, nats an answer</h2>{frontier(self.settings)}"
            + (f"<h2>Without a result</h2><ul>{left}</ul>" if left else "")
            + "</html>\n"
        )


def cell(setting: Setting, column: Column, spread: bool = True) -> str:
    """A mean and its spread as text; a dash where no run has the number."""
    number = setting.number(column.key)
    if number is None:
        return "-"
    text = column.form.format(number.mean)
    if number.spread is None or not spread:
        return text
    return f"{text} ±{column.spread.format(number.spread)}"


def frontier(settings: list[Setting]) -> str:
    """Win rate at equal length against KL as SVG (arXiv 2305.18290, figure 2).

    One point a run, a fainter one for each verdict while it trained; empty without any.
    """
    groups = {
        setting.name: (
            frontier_of(job.point for job in setting.jobs),
            frontier_of(point for job in setting.jobs for point in job.earlier),
        )
        for setting in settings
    }
    if not any(points for both in groups.values() for points in both):
        return "<p>No run has a win rate.</p>"
    return f"<figure>{scatter(groups, 'KL to the reference, nats an answer')}</figure>"


def tell_answer(sweep: Path) -> SweepReport:
    """Write `report.md`, `report.csv` and `report.html` into a sweep's folder, and show its table.

    Raises:
        ValueError: It holds no job.
    """
    report = SweepReport.of(sweep)
    for name, text in (("md", report.markdown()), ("csv", report.csv()), ("html", report.html())):
        write_text(sweep / f"report.{name}", text)
    console = Console()
    console.print(report.table())
    for remark in report.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    console.print(report.sentence, highlight=False, soft_wrap=True)
    console.print(f"Report: {sweep / 'report.html'}", highlight=False, soft_wrap=True)
    return report
