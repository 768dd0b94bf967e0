"""What the second judge says of the first: in the sentence where it matters, in the file always."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.measures import measure
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.table import table
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
    Console(file=out, width=100).print(table(one))
    assert "agreement, 60 decided" in out.getvalue()
    assert "Judge one can be trusted for form." in out.getvalue()
    assert "Judge two can be trusted for taste." in out.getvalue()
