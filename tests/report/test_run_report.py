"""A run's page: its own numbers, both languages, text as text, and runs that lack something."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo.config.schema import Config
from minimind_dpo.disk import read_rows, write_lines
from minimind_dpo.evaluation.judged import DECISIONS
from minimind_dpo.evaluation.table import verdict_rows
from minimind_dpo.evaluation.text import LANGUAGES
from minimind_dpo.report.__main__ import main
from minimind_dpo.report.curves import draw, points_of, ticks
from minimind_dpo.report.run import SHOWN, run_page, write_run_report
from minimind_dpo.report.words import _TEXTS, Words
from minimind_dpo.run.summary import write_summary

EN, ZH = Words("en"), Words("zh")


class Page(HTMLParser):
    """The text of a page, its tags, and what they would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "line", "circle", "polyline"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    return folder


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def test_a_run_ends_in_a_page_whose_first_words_are_the_verdict(finished_run: Path) -> None:
    page = Page((finished_run / "report.html").read_text(encoding="utf-8"))
    verdict = json.loads((finished_run / "verdict.json").read_text(encoding="utf-8"))
    texts = [text.strip() for text in page.text if text.strip()]
    assert texts[1:3] == ["Run run", verdict["sentence"]]
    assert verdict["judge"]["sentence"].startswith("Judge pairs can be trusted for ")
    assert verdict["judge"]["sentence"] in texts
    assert page._open == []
    assert page.links == []  # nothing is fetched
    assert page.tags.count("svg") >= 5
    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    assert summary["versions"]["torch"] in texts
    assert (finished_run / "config.yaml").read_text(encoding="utf-8").strip() in texts
    assert "64" in texts  # pairs for training


def test_every_answer_is_on_the_page_and_some_that_differ_are_not_folded(run: Path) -> None:
    cases = [
        {
            "prompt": [{"role": "user", "content": f"prompt {n}"}],
            "source": f"a:{n}",
            "reference": {"text": f"before {n}", "tokens": 2, "ended": True},
            "policy": {
                "text": f"{'before' if n % 2 else 'after'} {n}",
                "tokens": 2,
                "ended": n != 4,
            },
            "preferences": {"pairs": (1.0, -1.0, 0.0, None)[n % 4]},
        }
        for n in range(48)
    ]
    lines = "".join(json.dumps(case) + "\n" for case in cases)
    (run / "answers.jsonl").write_text(lines, encoding="utf-8")
    text = run_page(run, EN)
    open_part, folded = text.split("<summary>All others (36)")
    assert [int(n) for n in re.findall(r"prompt (\d+)<", open_part)] == list(range(0, 48, 4))
    assert len(re.findall(r"prompt \d+<", folded)) == 48 - SHOWN
    assert f"{SHOWN} of the 24 prompts whose answers differ, evenly spaced; 24 were" in open_part
    assert re.search(r"policy ✓ preferred … cut</span>after 4<", text)
    assert re.search(r"reference ✓ preferred</span>before 1<", text)
    assert re.search(r">reference</span>before 2<", text)
    assert re.search(r">policy</span>before 3<", text)


@pytest.mark.parametrize(
    ("decision", "border"), [("better", "better"), ("not better", "not-better")]
)
def test_a_verdict_of_two_words_is_not_coloured_as_one_of_them(
    run: Path, decision: str, border: str
) -> None:
    rewrite(run / "verdict.json", decision=decision)
    assert f'<p class="verdict {border}">' in run_page(run, EN)


@pytest.mark.parametrize("junk", ["", "{", "[1]", '{"steps": 6}'])
def test_a_verdict_that_is_none_is_no_verdict(run: Path, junk: str) -> None:
    (run / "verdict.json").write_text(junk)
    assert EN["no_verdict"] in run_page(run, EN)


def test_text_of_models_and_data_is_text_and_no_markup(run: Path) -> None:
    bad = "<script>alert(1)</script>{{ 7 * 6 }}"
    answer = {"text": bad, "tokens": 2, "ended": True}
    case = {"prompt": bad, "source": bad, "reference": answer, "policy": answer, "preferences": {}}
    (run / "answers.jsonl").write_text(json.dumps(case) + "\n", encoding="utf-8")
    (run / "samples.md").write_text(f"## Step 0\n{bad}\n## Step 2\n{bad}\n", encoding="utf-8")
    (run / "config.yaml").write_text(f"name: '{bad}'\n", encoding="utf-8")
    rewrite(run / "verdict.json", sentence=bad, alarms=[bad])
    text = run_page(run, EN)
    page = Page(text)
    assert "script" not in page.tags
    assert "<script" not in text
    assert "{{ 7 * 6 }}" in text
    assert "".join(page.text).count(bad) == 8


def test_the_chinese_page_has_the_verdict_and_its_numbers_in_chinese(run: Path) -> None:
    alarm = "回答过长：56 个词元，是参考模型 35 个的 1.6 倍。"
    rewrite(run / "verdict.json", alarms=["Answers run long"], alarms_zh=[alarm])
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    text = run_page(run, ZH)
    assert '<html lang="zh">' in text
    assert verdict["sentence_zh"].startswith(DECISIONS[verdict["decision"]].zh)
    judge = verdict["judge"]
    assert judge["sentence_zh"].startswith("裁判 pairs 的可信范围：训练偏好对的偏好，不计长度")
    for said in (verdict["sentence_zh"], alarm, judge["sentence_zh"]):
        assert said in text
    for said in (verdict["sentence"], "Answers run long", judge["sentence"]):
        assert said not in text
    for heading in ("数字", "曲线", "训练前后的回答", "数据", "训练", "配置", "版本"):
        assert f">{heading}<" in text
    labels = re.findall(r"<tr><td>([^<]*)</td>", text.split(">数字<")[1].split(">曲线<")[0])
    assert len(labels) > 10
    assert all(re.search(r"[\u4e00-\u9fff]", label) for label in labels)


def test_the_page_has_the_rows_of_the_terminal_s_table(run: Path) -> None:
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    text = run_page(run, EN)
    for row in verdict_rows(verdict):
        assert f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" in text


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_run_of_an_earlier_version_has_a_page(run: Path, language: str) -> None:
    """Without what was added since: Chinese, judges' sentences, numbers of the tables."""
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    for key in ("sentence_zh", "alarms_zh"):
        del verdict[key]
    for key in ("sentence", "sentence_zh", "advice", "advice_zh"):
        del verdict["judge"][key]
    (run / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    assert verdict["sentence"] in run_page(run, Words(language))
    del verdict["costs"]["kl_per_token"]
    (run / "verdict.json").write_text(json.dumps(verdict), encoding="utf-8")
    (run / "summary.json").write_text('{"steps": 6, "data": {}, "val": {"loss": 1}}')
    text = run_page(run, Words(language))
    assert verdict["sentence"] in text
    assert f"<h2>{Words(language)['numbers']}</h2>" not in text


def test_no_answer_is_preferred_by_a_judge_that_cannot_judge(run: Path) -> None:
    answer = {"text": "x", "tokens": 2, "ended": True}
    case = {"prompt": "?", "source": "", "reference": answer, "policy": {**answer, "text": "y"}}
    write_lines(run / "answers.jsonl", [{**case, "preferences": {"pairs": 1.0}}])
    assert "policy ✓ preferred" in run_page(run, EN)
    verdict = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    rewrite(run / "verdict.json", judge={**verdict["judge"], "can_judge": False})
    assert "✓" not in run_page(run, EN)


def test_all_words_are_there_in_both_languages() -> None:
    for key, (english, chinese) in _TEXTS.items():
        assert english, key
        assert re.search(r"[\u4e00-\u9fff]|KL", chinese), key
        assert english.count("{}") == chinese.count("{}"), key


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (["verdict.json", "answers.jsonl"], "There is no verdict on this run"),
        (["summary.json", "verdict.json", "answers.jsonl"], "This run has not finished"),
        (["csv"], "No metrics.csv"),
        (["samples.md", "frontier.jsonl"], "held-out prompts"),
    ],
)
def test_a_run_that_lacks_something_has_a_page_that_says_so(
    run: Path, lacks: list[str], words: str
) -> None:
    for name in lacks:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert words in run_page(run, EN)


def test_a_run_that_diverged_says_so_first(run: Path) -> None:
    for name in ("verdict.json", "answers.jsonl"):
        (run / name).unlink()
    rewrite(run / "summary.json", diverged="5 steps in a row", val={}, val_before={})
    assert "The run diverged: 5 steps in a row" in run_page(run, EN)


def test_the_command_makes_a_page_of_a_run_in_the_language_of_its_configuration(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").unlink()
    assert main([str(run)]) == 0
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out
    assert '<html lang="en">' in (run / "report.html").read_text(encoding="utf-8")
    config = run / "config.yaml"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("language: en", "language: zh"), encoding="utf-8")
    assert main([str(run)]) == 0
    assert '<html lang="zh">' in (run / "report.html").read_text(encoding="utf-8")
    assert main([str(run), "report.language=en"]) == 0
    assert '<html lang="en">' in (run / "report.html").read_text(encoding="utf-8")
    assert main([str(run / "csv")]) == 2
    assert main([str(run / "nowhere")]) == 2
    assert f"{run / 'nowhere'} does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("junk", [b"", b"a: [", b"[1]", b"\xff"])
def test_a_configuration_that_is_none_is_told_in_a_sentence(
    run: Path, junk: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_bytes(junk)
    assert main([str(run)]) == 2
    assert "config.yaml is no configuration of a run" in capsys.readouterr().err
    assert main([str(run), "report.language=zh"]) == 0


def test_answers_that_are_cut_short_are_told_with_their_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "answers.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    lines = len(path.read_text(encoding="utf-8").split("\n"))
    assert main([str(run)]) == 2
    told = f"{path} cannot be read: line {lines} is no JSON"
    assert told in capsys.readouterr().err


def test_line_separators_inside_an_answer_end_no_line(run: Path) -> None:
    text = "one\u2028two\u2029three\x85four"
    answer = {"text": text, "tokens": 2, "ended": True}
    case = {"prompt": text, "source": "", "reference": answer, "policy": answer, "preferences": {}}
    write_lines(run / "answers.jsonl", [case, case])
    assert "All others (2)" in run_page(run, EN)


def test_curves_are_the_run_s_own_numbers(run: Path) -> None:
    rows = read_rows(run / "csv" / "metrics.csv")[1]
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert [y for _, y in points_of(rows, "train/loss")] == losses
    drawn = write_run_report(run).read_text(encoding="utf-8")
    polylines = re.findall(r'<polyline points="([^"]+)"', drawn)
    assert len(polylines[0].split()) == len(losses)


def test_points_are_finite_and_many_are_averaged_in_groups() -> None:
    rows = [{"step": str(i), "a": str(i)} for i in range(900)]
    rows[1]["a"], rows[4]["a"] = "nan", ""
    points = points_of(rows, "a")
    assert len(points) == 300
    assert points[0] == (3.0, (0 + 2 + 3) / 3)  # of those that are numbers
    assert points_of(rows, "b") == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 94, [0, 50, 100]),
        (0.41, 0.69, [0.4, 0.5, 0.6, 0.7]),
        (-3.2, 8.7, [-5, 0, 5, 10]),
        (1, 1, [0.5, 1.0, 1.5]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (2e-7, 5e-7, [2e-7, 3e-7, 4e-7, 5e-7]),
    ],
)
def test_ticks_are_round_and_around_the_numbers(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_drawing_keeps_within_its_frame() -> None:
    svg = draw({"<a>": [(0, -5.0), (7, 3e6)], "b": [(3, 0.0)]}, "step")
    assert "&lt;a&gt;" in svg
    for x, y in re.findall(r"([\d.]+),([\d.]+)", " ".join(re.findall(r'points="([^"]+)"', svg))):
        assert 0 <= float(x) <= 360
        assert 0 <= float(y) <= 200


def test_a_summary_is_there_only_where_the_page_is(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a summary has finished, so nothing may be left to write."""

    def stopped(*args: Any) -> Path:
        raise KeyboardInterrupt

    summary = json.loads((finished_run / "summary.json").read_text(encoding="utf-8"))
    summary["versions"] = {"torch": "9.8.7"}
    (tmp_path / "config.yaml").write_text("name: x")
    monkeypatch.setattr("minimind_dpo.run.summary.write_run_report", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_summary(Config(), tmp_path, summary)
    assert not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    write_summary(Config(), tmp_path, summary)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    assert "9.8.7" in (tmp_path / "report.html").read_text(encoding="utf-8")
