"""The models behind the golden numbers are those that the original programs ran."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from golden_support import GOLDEN, HUB, NATIVE, Golden


@pytest.mark.parametrize("name", NATIVE + HUB)
def test_every_weight_has_the_norm_and_the_sum_that_the_original_had(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    state = g.state(name)
    for key, (norm, total) in g.data["norm_sum"].items():
        assert float(state[key].double().norm()) == pytest.approx(norm, rel=1e-6), key
        assert float(state[key].double().sum()) == pytest.approx(total, rel=1e-6, abs=1e-4), key
    assert state.keys() - g.data["norm_sum"].keys() == {key for key in state if "mask" in key}


def test_all_golden_numbers_together_are_under_2_and_a_half_mb() -> None:
    assert sum(f.stat().st_size for f in GOLDEN.rglob("*")) < 2.5e6
