"""Validation is a share of the prompts, the same on every machine."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind_dpo.data.batches.split import split_indices
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions


def store(hashes: Any) -> Any:
    array = np.asarray(hashes, np.uint64)

    class Sized(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.prompt_hash)

    return Sized(prompt_hash=array)


@pytest.mark.parametrize(
    ("pairs", "validation"),
    [
        (4, 0),  # a fifth of 4 is none
        (10, 2),  # never more than a fifth
        (100, 20),
        (160, 32),  # at least 32
        (1600, 32),
        (17_166, 343),  # 2%
        (60_000, 1000),  # at most 1,000
    ],
)
def test_the_default_is_two_percent_within_its_bounds(pairs, validation) -> None:
    train, val = split_indices(store(np.arange(pairs)))
    assert (len(train), len(val)) == (pairs - validation, validation)
    assert sorted([*train, *val]) == list(range(pairs))


@given(
    hashes=st.lists(st.integers(0, 20), min_size=1, max_size=80),
    fraction=st.none() | st.floats(0, 0.99),
)
def test_a_prompt_is_never_on_both_sides(hashes, fraction) -> None:
    train, val = split_indices(store(hashes), fraction)
    prompts = np.asarray(hashes)
    assert not set(prompts[train]) & set(prompts[val])
    assert sorted([*train, *val]) == list(range(len(hashes)))
    assert len(train) > 0
    share = 0.2 if fraction is None else fraction
    assert len(val) <= round(share * len(hashes))


def test_the_order_of_lines_does_not_matter() -> None:
    hashes = np.arange(500, dtype=np.uint64) * 977
    shuffled = np.random.default_rng(0).permutation(hashes)
    first = set(hashes[split_indices(store(hashes))[1]].tolist())
    assert first == set(shuffled[split_indices(store(shuffled))[1]].tolist())


def test_a_fraction_is_taken_and_zero_is_none() -> None:
    assert len(split_indices(store(np.arange(200)), 0.1)[1]) == 20
    assert len(split_indices(store(np.arange(200)), 0)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2, float("nan")])
def test_impossible_fractions_name_their_key(tokenizer, fraction) -> None:
    with pytest.raises(ValueError, match=r"data\.val_fraction"):
        PreferenceDataModule(tokenizer, DataOptions(val_fraction=fraction))
