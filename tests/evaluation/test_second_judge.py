"""What the second judge says of the first: in the sentence where it matters, in the file always."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from minimind_dpo.evaluation.alarms import alarms
from minimind_dpo.evaluation.compare import Comparison, comparison_table
from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.measures import Facts, measure
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.table import table
from minimind_dpo.evaluation.text import Text, chinese
from minimind_dpo.evaluation.verdict import Verdict

from .planted import written

WON = np.array([1.0] * 45 + [-1.0] * 15)
NOTHING = np.zeros(0)


def verdict(first: np.ndarray, second: np.ndarray, trust: Trust | None = None) -> Verdict:
    answers = [written("abc")] * len(first)
    zeros = np.zeros(len(first))
    return Verdict(
        judged=Judged("one", Trust("form"), first, zeros),
        also=Judged("two", trust or Trust("taste"), second, zeros),
        costs=measure(zeros, answers, answers, (NOTHING, NOTHING, NOTHING), "prompts"),
        facts=None,
        pairs=None,
        alarms=(),
        cases=(),
        settings={"max_new_tokens": 8},
    )


@pytest.mark.parametrize(
    ("first", "trust", "told"),
    [
        (
            WON,
            Trust("x"),
            "更好：60 个留出提示中胜率 75% [63, 85]，裁判 one；代价：每个回答 KL 0 奈特，",
        ),
        (
            WON,
            Trust("x", Estimate(0.9, 0.8, 0.95, 24)),
            "胜率 75% [63, 85]，裁判 one（在 24 个留出偏好对上判对 90% [80, 95]）；代价",
        ),
        (
            WON,
            Trust("x", Estimate(0.5, 0.4, 0.6, 24)),
            "裁判 one 无法评判：在 24 个留出偏好对上判对 50% [40, 60]，不比抛硬币更准；代价",
        ),
        (
            WON * np.nan,
            Trust("x", Estimate(0.9, 0.8, 0.95, 24)),
            "无法判断：裁判 one 对 0 个提示都没能给出判断；代价",
        ),
        (
            WON,
            Trust("x", unable=Text("nobody has voted", "还没有人投票")),
            "无法判断：裁判 one 无法评判，因为还没有人投票；代价",
        ),
        (WON[28:], Trust("x"), "；这样大的差别需要 "),
    ],
)
def test_the_sentence_in_chinese_gives_the_same_reason(
    first: np.ndarray, trust: Trust, told: str
) -> None:
    one = dataclasses.replace(
        verdict(first, first), judged=Judged("one", trust, first, 0 * first), also=None
    )
    assert told in one.sentence.zh
    assert one.to_json()["sentence_zh"] == one.sentence.zh


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (WON, "裁判 one；代价"),
        (
            -WON,
            "two 的结论是更差（25% [15, 37]），两者都分出胜负的 60 个提示中一致的占 0% [0, 4]；",
        ),
        (WON * 0, "；裁判 two 的结论是没有变好（50% [48, 52]），没有一个提示是两者都分出胜负的；"),
        (WON * np.nan, "；裁判 two 无法核对；"),
    ],
)
def test_the_second_judge_is_told_in_chinese_as_well(second: np.ndarray, told: str) -> None:
    assert told in verdict(WON, second).sentence.zh


def test_every_cost_is_told_in_chinese() -> None:
    """Answers of 8 tokens where the reference has 4, cut, in another text, with facts lost."""
    ours, theirs = [written("abcdefgh", ended=False)] * 60, [written("abc")] * 60
    nll = np.array([2.0, 2.0])
    one = dataclasses.replace(
        verdict(WON, WON),
        costs=measure(np.full(60, 3.14), ours, theirs, (nll, 0.5 * nll, nll), "prompts"),
        facts=Facts(known=60, lost=2, gained=0),
    )
    assert one.sentence.zh.partition("；代价：")[2] == (
        "每个回答 KL 3.1 奈特，回答长 100%，其中 100% 在 8 个词元处被截断，60 个事实丢失 2 个，"
        "文本困惑度 +64.9%"
    )
    sounded = alarms(one.costs, None)
    assert [chinese(alarm)[:5] for alarm in sounded] == ["回答不结束", "回答过长："]


@pytest.mark.parametrize(
    ("second", "trust", "told"),
    [
        # The same decision, and agreement in all cases that both decide.
        (WON, None, "judge one; cost"),
        (WON * (np.arange(60) % 2), None, "judge one; cost"),
        (
            -WON,
            None,
            "; judge two says worse (25% [15, 37]), and agrees on 0% [0, 4] of 60 prompts",
        ),
        (WON * 0, None, "; judge two says not better (50% [48, 52]), and no prompt is decided by"),
        # As good a win rate on other prompts: they agree where 30 are won by both.
        (WON[::-1], None, "; judge two says better (75% [63, 85]), and agrees on 50% ["),
        (WON * np.nan, None, "; judge two cannot check it; cost"),
        (WON, Trust("x", Estimate(0.5, 0.4, 0.6, 9)), "; judge two cannot check it; cost"),
    ],
)
def test_the_sentence_tells_where_the_second_judge_does_not_bear_the_first_out(
    second: np.ndarray, trust: Trust | None, told: str
) -> None:
    sentence = verdict(WON, second, trust).sentence
    assert sentence.startswith("better: won 75% [63, 85] of 60 held-out prompts by judge one")
    assert told in sentence


def test_agreement_and_what_judges_can_be_trusted_for_are_in_the_file_and_the_table() -> None:
    one = verdict(WON, WON)
    content = one.to_json()
    assert content["also"]["agreement"]["value"] == 1.0
    assert content["also"]["agreement"]["n"] == 60
    assert content["judge"]["sentence"] == "Judge one can be trusted for form."
    assert content["also"]["sentence"] == "Judge two can be trusted for taste."
    out = io.StringIO()
    Console(file=out, width=100).print(table(one.to_json()))
    assert "agreement, 60 decided" in out.getvalue()
    assert "Judge one can be trusted for form." in out.getvalue()
    assert "Judge two can be trusted for taste." in out.getvalue()


def test_policies_that_are_compared_have_their_costs_beside_their_wins() -> None:
    """The second wins as often, with answers twice as long and a KL of 3.1."""
    ours, theirs, nothing = [written("abcdefg")] * 60, [written("abc")] * 60, np.zeros(0)
    costs = measure(np.full(60, 3.14), ours, theirs, (nothing, nothing, nothing), "prompts")
    first = verdict(WON, WON)
    longer = dataclasses.replace(first, costs=costs)
    out = io.StringIO()
    grid = comparison_table("A", first, [Comparison.of("B", longer, "A", first)])
    Console(file=out, width=120).print(grid)
    rows = [line.split() for line in out.getvalue().splitlines() if "better" in line]
    assert [cell for cell in rows[0] if cell in ("0", "x1.00")] == ["0", "x1.00"]
    assert [cell for cell in rows[1] if cell in ("3.1", "x2.00")] == ["3.1", "x2.00"]
