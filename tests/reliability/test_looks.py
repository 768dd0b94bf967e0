"""Ranks ask each other for a stop seldom where micro-batches are fast, always where they are slow.

Each rank decides by itself where to ask, so all have to come to the same.
"""

from __future__ import annotations

from typing import Any

import pytest

from minimind_dpo.training import looks
from minimind_dpo.training.looks import Looks


class Ranks:
    """Several, of which this one decides."""

    def __init__(self, world_size: int, others_are_slow: bool = False) -> None:
        self.world_size = world_size
        self.others_are_slow = others_are_slow
        self.strategy = self

    def reduce_boolean_decision(self, decision: bool, all: bool) -> bool:
        return decision or self.others_are_slow


def asked(monkeypatch: pytest.MonkeyPatch, trainer: Any, seconds: float) -> list[int]:
    """How often ranks asked in the 39 micro-batches before the end of each of four steps."""
    clock = [0.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: clock[0])
    found, schedule = [], Looks()
    for step in range(4):
        times = 0
        for batch in range(step * 40, step * 40 + 39):
            clock[0] += seconds
            times += schedule.between_micro_batches(trainer, batch)
        clock[0] += seconds
        schedule.end_step(trainer)
        found.append(times)
    return found


def test_fast_micro_batches_are_asked_after_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, Ranks(2), 0.1) == [39, 39, 2, 2]


def test_slow_ones_are_asked_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, Ranks(2), 2.0) == [39] * 4


def test_those_that_are_slow_on_another_rank_only_are_so_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert asked(monkeypatch, Ranks(2, others_are_slow=True), 0.1) == [39] * 4


def test_one_rank_looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, Ranks(1), 0.1) == [39] * 4
