"""Intervals that cover the truth, on planted cases whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from minimind_dpo.evaluation.statistics import (
    Estimate,
    bootstrap,
    length_controlled,
    paired_difference,
    prompts_to_decide,
    share_interval,
    t_quantile,
)

Draw = Callable[[np.random.Generator, int], np.ndarray]


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.asarray(x))))


def judged(win: float, tie: float) -> Draw:
    """Shares of a policy that wins and ties with these chances."""

    def draw(random: np.random.Generator, n: int) -> np.ndarray:
        u = random.random(n)
        return np.where(u < win, 1.0, np.where(u < win + tie, 0.5, 0.0))

    return draw


def coverage(
    interval: Callable[[np.random.Generator], Estimate], truth: float, times: int
) -> float:
    random = np.random.default_rng(0)
    return float(np.mean([truth in interval(random) for _ in range(times)]))


@pytest.mark.parametrize("n", [32, 64, 200])
@pytest.mark.parametrize(
    ("win", "tie"),
    [(0.5, 0.0), (0.6, 0.0), (0.75, 0.0), (0.3, 0.4), (0.52, 0.47), (0.15, 0.8), (0.05, 0.9)],
)
def test_win_rates_cover_the_truth_in_93_to_97_percent(win: float, tie: float, n: int) -> None:
    """4,000 repetitions, so that chance moves a share by 0.7 points at most."""
    draw = judged(win, tie)
    covered = coverage(lambda r: share_interval(draw(r, n)), win + tie / 2, 4000)
    # With 32 prompts of which three in four tie, few shares are possible: to the safe side.
    assert 0.93 <= covered <= (0.97 if n * (1 - tie) > 10 else 0.995)


@pytest.mark.parametrize("n", [64, 200])
def test_a_win_rate_near_one_covers_as_well(n: int) -> None:
    """Student's interval of 64 prompts of which 97% win would cover the truth in 85% alone."""
    covered = coverage(lambda r: share_interval(judged(0.97, 0.0)(r, n)), 0.97, 4000)
    assert 0.93 <= covered <= 0.99


def test_equal_policies_are_told_apart_in_at_most_one_case_of_twenty() -> None:
    covered = coverage(lambda r: share_interval(judged(0.3, 0.4)(r, 64)), 0.5, 4000)
    assert covered >= 0.94


def test_an_interval_of_agreement_has_a_width_and_one_prompt_tells_nothing() -> None:
    ties = share_interval(np.full(64, 0.5))
    assert ties.value == 0.5
    assert (round(ties.low, 3), round(ties.high, 3)) == (0.485, 0.515)
    wins = share_interval(np.ones(64))
    assert wins.value == wins.high == 1.0
    # mean 65/66, variance 64.75/66 - (65/66)^2 = 0.01113: 0.98485 - 1.9983 (0.01113/66)^(1/2)
    assert wins.low == pytest.approx(0.9589, abs=1e-4)
    assert share_interval(np.ones(1)) == Estimate(1.0, 0.0, 1.0, 1)


def test_a_win_rate_by_hand() -> None:
    # 6 wins, 2 ties, 2 losses; with half a win, half a loss and a tie: mean 8/12, of squares
    # (6 + 0.5 + 0.75)/12, variance 0.604167 - 0.444444 = 0.159722, t of 9 is 2.2622.
    got = share_interval(np.array([1.0] * 6 + [0.5] * 2 + [0.0] * 2))
    half = 2.2622 * (0.159722 / 12) ** 0.5
    assert got.value == 0.7
    assert (got.low, got.high) == pytest.approx((8 / 12 - half, 8 / 12 + half), abs=1e-4)
    assert got.percent() == "70% [41, 93]"


def test_t_quantiles_are_those_of_tables() -> None:
    table = {3: 3.182, 4: 2.776, 8: 2.306, 15: 2.131, 31: 2.040, 63: 1.998}
    assert {v: t_quantile(v) for v in table} == pytest.approx(table, rel=8e-3)


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("phi", [0.0, 3.0])
@pytest.mark.parametrize("theta", [0.0, 1.0])
def test_length_controlled_rates_cover_the_rate_at_equal_length(
    theta: float, phi: float, shift: float
) -> None:
    """The judge likes length by phi; answers are longer by 0 or 0.7 standard deviations."""

    def one(random: np.random.Generator) -> Estimate:
        longer_by = 20.0 * (shift + random.normal(size=64))
        likes = theta + phi * np.tanh(longer_by / (20.0 * np.hypot(1.0, shift)))
        shares = (random.random((2, 64)) < sigmoid(likes)).mean(0)  # a tie where two draws differ
        return length_controlled(shares, longer_by)

    assert 0.93 <= coverage(one, float(sigmoid(theta)), 1000) <= 0.975


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("phi", [0.0, 3.0])
@pytest.mark.parametrize("theta", [2.0, 3.0])
def test_a_rate_at_equal_length_of_88_and_95_percent_is_told_too_low_and_not_too_high(
    n: int, phi: float, theta: float
) -> None:
    """It leans towards one half: 97.5% of intervals would begin below the truth, and more do."""
    random, truth, got = np.random.default_rng(0), float(sigmoid(theta)), []
    for _ in range(400):
        longer_by = 20.0 * random.normal(size=n)
        likes = theta + phi * np.tanh(longer_by / 20.0)
        got.append(length_controlled((random.random((2, n)) < sigmoid(likes)).mean(0), longer_by))
    assert np.mean([one.low > truth for one in got]) <= 0.01
    assert np.mean([one.value for one in got]) < truth


@pytest.mark.parametrize("n", [32, 64])
@pytest.mark.parametrize("shift", [1.4, 2.0, 4.0])
@pytest.mark.parametrize(("theta", "phi"), [(0.0, 0.0), (0.0, 3.0), (1.0, 3.0), (1.0, -2.0)])
def test_where_nearly_all_answers_are_longer_the_interval_still_covers(
    n: int, shift: float, theta: float, phi: float
) -> None:
    """Of 32 answers, 3, 1 and none are shorter. Too wide an interval is not wrong there."""

    def one(random: np.random.Generator) -> Estimate:
        longer_by = 20.0 * (shift + random.normal(size=n))
        likes = theta + phi * np.tanh(longer_by / (20.0 * np.hypot(1.0, shift)))
        shares = (random.random((2, n)) < sigmoid(likes)).mean(0)
        return length_controlled(shares, longer_by)

    assert coverage(one, float(sigmoid(theta)), 400) >= 0.93


def test_a_win_by_length_alone_is_none_at_equal_length() -> None:
    random = np.random.default_rng(3)
    longer_by = random.normal(15, 20, 200)
    shares = (random.random(200) < sigmoid(4 * np.tanh(longer_by / 25))).astype(float)
    assert share_interval(shares).low > 0.6
    assert 0.5 in length_controlled(shares, longer_by)


def test_where_lengths_are_equal_the_length_controlled_rate_is_the_win_rate() -> None:
    shares = judged(0.5, 0.3)(np.random.default_rng(0), 200)
    plain, controlled = share_interval(shares), length_controlled(shares, np.zeros(200))
    assert controlled.value == pytest.approx(plain.value, abs=5e-3)
    assert controlled.low == pytest.approx(plain.low, abs=5e-3)
    few = length_controlled(np.array([1.0, 0.5, 1.0]), np.array([3.0, 1.0, -2.0]))
    assert (few.low, few.high) == (0.0, 1.0)


def test_wins_that_are_all_longer_leave_the_length_controlled_rate_open() -> None:
    """Both terms explain them alike: separation, where plain logistic regression has no end."""
    got = length_controlled(np.ones(64), np.full(64, 30.0))
    assert got.low < 0.75
    assert np.isfinite([got.low, got.value, got.high]).all()


def test_paired_differences_cover_the_truth_and_are_narrower_than_unpaired_ones() -> None:
    """Both policies answer like the reference to half of the prompts, and the same half."""

    def two(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        easy = random.random(100) < 0.5
        first = np.where(easy, 0.5, random.random(100) < 0.7)
        return first, np.where(easy, 0.5, random.random(100) < 0.5)

    covered = coverage(lambda r: paired_difference(*two(r)), 0.1, 2000)
    assert 0.93 <= covered <= 0.97
    first, second = two(np.random.default_rng(0))
    paired = paired_difference(first, second)
    shuffled = paired_difference(first, np.random.default_rng(1).permutation(second))
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < shuffled.high - shuffled.low


def test_so_many_prompts_decide_in_four_cases_of_five() -> None:
    draw = judged(0.4, 0.3)  # a win rate of 55%
    random = np.random.default_rng(0)
    needed = prompts_to_decide(draw(random, 100_000))
    # sd^2 = 0.4 + 0.3/4 - 0.55^2 = 0.1725; (2.8016^2) 0.1725 / 0.05^2 = 541.6
    assert needed == pytest.approx(542, rel=0.1)
    decided = np.mean([share_interval(draw(random, 542)).low > 0.5 for _ in range(2000)])
    assert decided == pytest.approx(0.8, abs=0.03)
    assert prompts_to_decide(np.full(64, 0.5)) is None


def test_bootstrap_intervals_of_shares_and_margins_cover_the_truth() -> None:
    def share(random: np.random.Generator) -> Estimate:
        return bootstrap([(random.random(100) < 0.7).astype(float)], share=True)

    def margin(random: np.random.Generator) -> Estimate:
        return bootstrap([random.gamma(4.0, 1.0, 100)])

    assert 0.93 <= coverage(share, 0.7, 400) <= 0.975
    assert 0.93 <= coverage(margin, 4.0, 400) <= 0.975


def test_a_bootstrapped_share_is_jeffreys_interval_where_all_are_right() -> None:
    # Beta(100.5, 0.5): its 2.5% quantile is 0.9754.
    got = bootstrap([np.ones(100)], share=True)
    assert got.value == got.high == 1.0
    assert got.low == pytest.approx(0.9754, abs=2e-3)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=50), 4)
    alone = bootstrap([values])
    together = bootstrap([values], groups=np.repeat(np.arange(50), 4))
    assert together.value == alone.value
    # Four copies of a value are one: the interval is twice as wide as that of 200 values.
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(2.0, rel=0.1)


def test_a_bootstrapped_ratio_is_that_of_the_means() -> None:
    policy, reference = np.array([10.0, 30.0, 20.0]), np.array([10.0, 20.0, 10.0])
    got = bootstrap([policy, reference], lambda p, r: p / r)
    assert got.value == pytest.approx(1.5)  # not the mean of 1, 1.5 and 2
    assert 1.0 < got.low < 1.5 < got.high < 2.0
