"""The plan of optimizer steps: complete, balanced, and independent of the devices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_dpo.data.batches.step_plan import StepSampler, StepShape


def make(n: int, shape: StepShape, **options: object) -> StepSampler:
    tokens = np.random.default_rng(7).integers(10, 500, n)
    return StepSampler(np.arange(100, 100 + n), tokens, shape, **options)  # type: ignore[arg-type]


shapes = st.builds(StepShape, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 90), shape=shapes, epoch=st.integers(0, 3))
def test_an_epoch_visits_every_pair_once_over_all_ranks(
    n: int, shape: StepShape, epoch: int
) -> None:
    sampler = make(n, shape, seed=3)
    plan = sampler.plan(epoch)
    rows = [row for rank in plan for micro in rank for row in micro.rows]
    assert sorted(rows) == list(range(100, 100 + n))
    # As many micro-batches on every rank and in every epoch: Lightning fixes it at epoch 0.
    assert {len(rank) for rank in plan} == {len(sampler)}


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 90), shape=shapes, limit=st.integers(1, 20))
def test_window_pairs_is_what_the_step_really_holds(n: int, shape: StepShape, limit: int) -> None:
    sampler = make(n, shape, limit=limit)
    plan = sampler.plan(0)
    assert len(plan[0]) == len(sampler) <= limit
    for begin in range(0, len(sampler), shape.accumulate):
        window = [m for rank in plan for m in rank[begin : begin + shape.accumulate]]
        assert {m.window.pairs for m in window} == {sum(len(m.rows) for m in window)}


@pytest.mark.parametrize(
    "shape", [StepShape(8, 1, 1), StepShape(4, 2, 1), StepShape(4, 1, 2), StepShape(1, 4, 2)]
)
def test_steps_hold_the_same_pairs_on_any_number_of_devices(shape: StepShape) -> None:
    def steps(s: StepShape) -> list[list[int]]:
        plan = make(45, s, seed=1).plan(2)
        return [
            sorted(row for rank in plan for m in rank[i : i + s.accumulate] for row in m.rows)
            for i in range(0, len(plan[0]), s.accumulate)
        ]

    assert steps(shape) == steps(StepShape(8, 1, 1))
    assert [len(step) for step in steps(shape)] == [8, 8, 8, 8, 8, 5]


def test_micro_batches_of_a_step_hold_about_as_many_tokens() -> None:
    sampler = make(64, StepShape(8, 4, 2))
    cost = dict(zip(sampler.rows.tolist(), sampler.tokens.tolist(), strict=True))
    loads = [sum(cost[row] for row in m.rows) for rank in sampler.plan(0) for m in rank]
    assert max(loads) - min(loads) <= 0.1 * max(loads)


def test_epochs_differ_and_a_seed_repeats() -> None:
    sampler = make(40, StepShape(4), seed=5)
    assert sampler.plan(0) != sampler.plan(1)
    assert sampler.plan(1) == make(40, StepShape(4), seed=5).plan(1)
    assert make(40, StepShape(4), seed=6).plan(0) != sampler.plan(0)


def test_without_shuffle_the_order_is_the_files() -> None:
    plan = make(10, StepShape(4), shuffle=False).plan(3)
    assert [m.rows for m in plan[0]] == [(100, 101, 102, 103), (104, 105, 106, 107), (108, 109)]


def test_it_goes_on_where_it_stopped_in_that_epoch_alone() -> None:
    sampler = make(10, StepShape(2), seed=1)
    whole = list(sampler)
    sampler.start_at(3)
    assert list(sampler) == whole[3:]
    assert list(sampler) == whole[3:]  # a loader may make iterators that it does not read
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(whole)
    assert len(sampler) == 5


def test_drop_last_leaves_the_cut_window_out() -> None:
    sampler = make(10, StepShape(2, 2), drop_last=True)
    assert len(sampler) == 4
    assert len(sampler.visited(1)) == 8


def test_a_run_of_few_steps_visits_the_pairs_of_those_steps_alone() -> None:
    sampler = make(10, StepShape(2, 2), seed=3)  # three steps an epoch: 4, 4 and 2 pairs
    order = [[row for batch in sampler.plan(e)[0] for row in batch.rows] for e in (0, 1)]
    assert set(sampler.visited(1, 2)) == set(order[0][:8])
    assert set(sampler.visited(None, 2)) == set(order[0][:8])
    assert len(sampler.visited(1, 3)) == len(sampler.visited(5, 7)) == 10
    assert len(sampler.visited(None, None)) == 10
    short = make(10, StepShape(2, 2), seed=3, drop_last=True)
    assert set(short.visited(None, 3)) == set(order[0][:8]) | set(order[1][:4])
