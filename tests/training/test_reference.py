"""The pass ahead of training: every row scored by some rank, whatever the others have written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.store.prepare import ReferenceCache
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.demo import HELD_OUT, MODEL, TOKENIZER
from minimind_dpo.models import load_model
from minimind_dpo.training.reference import PrecomputedReference


def rank_of_two(rank: int) -> Any:
    strategy = SimpleNamespace(root_device=torch.device("cpu"), barrier=lambda name: None)
    precision = SimpleNamespace(forward_context=contextlib.nullcontext)
    return SimpleNamespace(
        precision="32-true",
        max_epochs=1,
        max_steps=-1,
        ckpt_path=None,
        global_rank=rank,
        world_size=2,
        is_global_zero=False,
        strategy=strategy,
        precision_plugin=precision,
    )


def test_a_rank_that_looks_after_the_other_has_written_still_leaves_no_row_out(
    tmp_path: Path,
) -> None:
    policy = load_model(MODEL, TOKENIZER)
    tokenizer = PairTokenizer(policy.tokenizer)  # type: ignore[arg-type]
    data = PreferenceDataModule(
        tokenizer, [str(HELD_OUT)], val_fraction=0, cache_dir=str(tmp_path), progress=False
    )
    data.setup("fit")
    scored = 0
    for rank in (0, 1):  # one after the other: the second finds half of the rows present
        reference = PrecomputedReference(progress=False)
        reference._score(rank_of_two(rank), data, policy.model)
        scored += reference.scored
    (store,) = data.stores
    cache = ReferenceCache(store, reference.fingerprint)
    assert cache.missing(np.arange(len(store))).tolist() == []
    assert scored == len(store)
