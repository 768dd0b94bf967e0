"""A sweep ends in an answer: seeds averaged, the recommendation by its rule, what is left named."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from minimind_dpo.disk import write_lines
from minimind_dpo.evaluation.answers import Answer
from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.measures import measure
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.verdict import Verdict
from minimind_dpo.report.__main__ import WRONG_INPUT, main
from minimind_dpo.report.jobs import Job, read_jobs
from minimind_dpo.report.options import SweepOptions
from minimind_dpo.report.settings import Setting, compare, recommend
from minimind_dpo.report.sweep import SweepReport, frontier


def job(beta: float, rate: float, kl: float, **more: Any) -> Job:
    """A finished run whose win rate at equal length has a standard error of 0.03."""
    settings = {"model.path": "m.pth", "loss.beta": str(beta), "seed": more.pop("seed", "1")}
    point = {"length_controlled": rate, "win_rate": rate, "kl": kl}
    more = {"length_controlled_error": 0.03, "judge": "pairs", "seconds": 60.0, **more}
    return Job("0", settings, point, **more)


def test_the_smallest_kl_within_one_standard_error_of_the_best_is_taken() -> None:
    """Best 0.70 at KL 5; 0.68 is within 0.03 of it at KL 2; 0.66 is not, at KL 1."""
    jobs = [job(0.05, 0.70, 5.0), job(0.1, 0.68, 2.0), job(0.2, 0.66, 1.0)]
    choice, sentence = recommend(compare(jobs))
    assert choice is not None
    assert choice.values == {"loss.beta": "0.1"}
    assert sentence == (
        "take loss.beta=0.1: wins 68% at equal length, KL 2.00 nats; loss.beta=0.05 wins 70%, no "
        "more than one standard error better, at KL 5.00"
    )


def test_an_alarm_or_an_interval_that_holds_one_half_rules_a_setting_out() -> None:
    """0.55 is 1.7 standard errors above one half."""
    assert recommend(compare([job(0.1, 0.55, 1.0), job(0.2, 0.5, 0.5)])) == (
        None,
        "none beats the reference",
    )
    loud = [job(0.1, 0.9, 9.0, alarms=("turns do not end",)), job(0.2, 0.7, 1.0)]
    choice, _ = recommend(compare(loud))
    assert choice is not None
    assert choice.values == {"loss.beta": "0.2"}
    assert recommend(compare(loud[:1]))[1] == "none beats the reference without an alarm"


def test_without_a_win_rate_nothing_is_recommended() -> None:
    unjudged = Job("0", {"loss.beta": "0.1"}, {"kl": 1.0}, judge="none")
    assert recommend(compare([unjudged])) == (
        None,
        "no run has a win rate, so nothing is recommended",
    )


def test_a_number_that_a_search_has_drawn_is_rounded_in_its_name() -> None:
    values = {"loss.beta": "0.020008950740630464", "name": "a_name_of_its_own"}
    assert Setting(values, [], []).name == "loss.beta=0.02001 name=a_name_of_its_own"


def test_seeds_are_averaged_and_their_spread_joins_the_error() -> None:
    """0.60 and 0.70: mean 0.65, sd 0.0707; error sqrt(0.03^2 + 0.0707^2 / 2) = 0.0583."""
    jobs = [job(0.1, 0.6, 1.0, seed="1"), job(0.1, 0.7, 3.0, seed="2")]
    (setting,) = compare(jobs)
    rate = setting.number("length_controlled")
    assert rate is not None
    assert (rate.mean, rate.spread) == (pytest.approx(0.65), pytest.approx(0.0707, abs=1e-4))
    assert setting.error() == pytest.approx(0.0583, abs=1e-4)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two betas with two seeds each; one job unfinished, one diverged, junk beside them."""
    rows = [(0.05, 1, 0.70), (0.05, 2, 0.74), (0.2, 1, 0.60), (0.2, 2, None), (0.2, 3, None)]
    for number, (beta, seed, rate) in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        arguments = ["experiment=demo", f"loss.beta={beta}", f"seed={seed}"]
        (folder / "job.json").write_text(json.dumps({"arguments": arguments, "settings": ""}))
        if rate is None:
            content = {"diverged": "at step 3"} if seed == 3 else None
            (folder / "summary.json").write_text("{" if content is None else json.dumps(content))
            continue
        (folder / "summary.json").write_text(
            json.dumps({"val": {"loss": 0.4}, "wall_seconds": 40.0})
        )
        interval = {"value": rate, "low": rate - 0.0588, "high": rate + 0.0588}
        judge = {"name": "pairs", "unable": "", "length_controlled": interval}
        verdict = {"decision": "better", "judge": judge, "alarms": []}
        (folder / "verdict.json").write_text(json.dumps(verdict))
        points = [
            {"step": s, "length_controlled": rate - 0.1 + s / 100, "kl": s / 10} for s in (5, 10)
        ]
        lines = [json.dumps({**point, "win_rate": None}) for point in points]
        (folder / "frontier.jsonl").write_text("\n".join(lines))
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_a_folder_becomes_a_table_pages_and_a_sentence(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "job 4: diverged" in shown
    assert "take loss.beta=0.05: wins 72% at equal length, KL 1.00 nats" in shown
    markdown = (sweep / "report.md").read_text(encoding="utf-8")
    assert "| loss.beta=0.05 | 2 of 2 | - | 72% ±2.8% | 1.00 ±0.00 |" in markdown
    assert "- 3: unfinished or failed" in markdown
    assert "- 4: diverged" in markdown
    rows = list(csv.DictReader(io.StringIO((sweep / "report.csv").read_text(encoding="utf-8"))))
    assert [row["loss.beta"] for row in rows] == ["0.05", "0.05", "0.2", "0.2", "0.2"]
    assert [row["length_controlled"] for row in rows[:3]] == ["0.7", "0.74", "0.6"]
    page = (sweep / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert not re.search(r"(src|href)=.http|@import|url\(h", page)


def test_the_table_is_whole_in_a_terminal_of_80_characters() -> None:
    numbers = {"length_ratio": 1.13, "perplexity_ratio": 1.31, "pair_accuracy": 1.0}
    jobs = []
    for beta, seed, rate in ((0.05, "1", 0.6), (0.05, "2", 0.7), (0.5, "1", 0.65)):
        one = job(beta, rate, 10.5 + rate, seed=seed)
        jobs.append(dataclasses.replace(one, point={**one.point, **numbers}))
    settings = compare(jobs)
    report = SweepReport("2026-11-25_02-06-14_beta", jobs, settings, *recommend(settings))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    assert "…" not in text
    assert "loss.beta=0.05" in text
    assert "65% ±7.1%" in text
    assert "11.15 ±0.07" in text


def test_the_frontier_has_a_point_a_run_and_a_faint_one_for_each_verdict_on_the_way(
    sweep: Path,
) -> None:
    report = SweepReport.of(sweep)
    drawing = frontier(report.settings)
    assert drawing.count('r="4"') == 3
    assert drawing.count('r="2"') == 3
    assert [drawing.count(setting.name) for setting in report.settings] == [2, 2]  # title, legend
    assert "No run has a win rate" in frontier([])


def test_a_point_while_training_is_not_the_result(sweep: Path) -> None:
    first = read_jobs(sweep)[0]
    assert first.point["length_controlled"] == pytest.approx(0.7)
    assert [point["step"] for point in first.earlier] == [5]


def test_a_folder_without_jobs_is_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == WRONG_INPUT
    assert "holds no job of a sweep" in capsys.readouterr().err


def test_a_language_is_for_the_page_of_a_run_alone(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(sweep), "report.language=zh"]) == WRONG_INPUT
    assert "report.language=zh is for the page of a run" in capsys.readouterr().err


def test_a_judge_that_cannot_judge_gives_a_search_no_rate(sweep: Path) -> None:
    """Its accuracy on held-out pairs is that of chance."""
    blind = Trust("x", Estimate(0.55, 0.45, 0.65, 100))
    answers = [Answer("abc", np.arange(4, dtype=np.int32), True)] * 64
    nothing, zeros = np.zeros(0), np.zeros(64)
    verdict = Verdict(
        judged=Judged("pairs", blind, np.ones(64), zeros),
        also=None,
        costs=measure(zeros, answers, answers, (nothing, nothing, nothing), "prompts"),
        facts=None,
        pairs=None,
        alarms=(),
        cases=(),
        settings={},
    )
    assert verdict.numbers()["win_rate"] is verdict.numbers()["length_controlled"] is None
    write_lines(sweep / "0" / "frontier.jsonl", [{"step": 10, **verdict.numbers()}])
    (sweep / "0" / "verdict.json").write_text(json.dumps(verdict.to_json()))
    job = read_jobs(sweep)[0]
    assert job.objective(SweepOptions("win_rate")) is None
    assert job.objective(SweepOptions()) is None
    assert job.judge == "pairs: cannot judge"
