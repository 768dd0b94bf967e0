"""The pass ahead of training: every row scored by some rank, whatever the others have written."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from training_support import tiny_model

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.store.reference_logps import ReferenceCache
from minimind_dpo.demo import HELD_OUT, MODEL, TOKENIZER
from minimind_dpo.models.compile_layers import compile_layers
from minimind_dpo.models.load import load_model
from minimind_dpo.training import reference as reference_module
from minimind_dpo.training.reference import PrecomputedReference
from minimind_dpo.training.reference_key import reference_key
from minimind_dpo.training.shown_progress import progress


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
    options = DataOptions(train=HELD_OUT, val_fraction=0, cache_dir=str(tmp_path))
    data = PreferenceDataModule(policy.tokenizer, options, progress=False)  # type: ignore[arg-type]
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


def test_log_probs_of_a_batch_are_read_once_the_next_one_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    begin = reference_module.begin_scoring

    def watched(model: Any, pairs: Any, *args: Any, **keywords: Any) -> Any:
        number = sum(event.startswith("begin") for event in events)
        events.append(f"begin {number}")
        finish = begin(model, pairs, *args, **keywords)

        def finished() -> Any:
            events.append(f"read {number}")
            return finish()

        return finished

    monkeypatch.setattr(reference_module, "begin_scoring", watched)
    policy = load_model(MODEL, TOKENIZER)
    options = DataOptions(train=HELD_OUT, val_fraction=0, cache_dir=str(tmp_path))
    data = PreferenceDataModule(policy.tokenizer, options, progress=False)  # type: ignore[arg-type]
    data.setup("fit")
    # 200 pairs of about 35 tokens: two batches and a rest for one of two ranks.
    reference = PrecomputedReference(batch_tokens=1500, progress=False)
    reference._score(rank_of_two(0), data, policy.model)
    assert events == ["begin 0", "begin 1", "read 0", "begin 2", "read 1", "read 2"]
    assert reference.scored == 100


def test_the_memory_of_a_card_is_asked_for_once_before_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pass over training data takes is no reason to do the validation's in parts."""
    asked: list[torch.device] = []
    monkeypatch.setattr(
        reference_module, "tokens_at_a_time", lambda device: asked.append(device) or 20_000
    )
    policy = load_model(MODEL, TOKENIZER)
    options = DataOptions(train=HELD_OUT, val=HELD_OUT, cache_dir=str(tmp_path))
    data = PreferenceDataModule(policy.tokenizer, options, progress=False)  # type: ignore[arg-type]
    data.setup("fit")
    assert len(data.stores) == 2
    PrecomputedReference(progress=False)._score(rank_of_two(0), data, policy.model)
    assert asked == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("free", "tokens"), [(8e9, 13_333), (24e9, 40_000), (80e9, 65_536), (1e9, 4096)]
)
def test_the_pass_takes_as_many_tokens_as_the_card_has_memory_for(
    free: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), 80 * 10**9))
    assert reference_module.tokens_at_a_time(torch.device("cuda")) == tokens
    assert reference_module.tokens_at_a_time(torch.device("cpu")) == 16384


def test_the_cache_s_key_holds_whatever_changes_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cpu = tiny_model(), torch.device("cpu")

    def key(
        layout: str = "prefix_shared", precision: str = "32-true", device: torch.device = cpu
    ) -> str:
        return reference_key(model, layout=layout, precision=precision, device=device)

    first, half = key(), key(precision="bf16-mixed")
    assert first == key()
    # In float32 a device moves a log-prob by rounding alone.
    assert first == key(device=torch.device("cuda"))
    assert half != key(precision="bf16-mixed", device=torch.device("cuda"))
    others = {first, half, key("padded"), key("packed"), key(precision="16-mixed")}
    torch.set_float32_matmul_precision("high")
    try:
        others.add(key())
    finally:
        torch.set_float32_matmul_precision("highest")
    # No shape and no weight tells these: they are the model's settings.
    for name, value in {"num_attention_heads": 8, "rms_norm_eps": 1e-5}.items():
        monkeypatch.setattr(model.config, name, value)
        others.add(key())
    monkeypatch.setitem(model.config.rope_parameters, "rope_theta", 5e5)
    others.add(key())
    assert len(others) == 9
    assert key() in others
    monkeypatch.setattr("minimind_dpo.training.reference_key.KERNELS", 0)
    assert key() in others
    assert half != key(precision="bf16-mixed")


def test_compiled_layers_have_numbers_of_their_own_in_half_precision() -> None:
    model, device = tiny_model(), torch.device("cpu")

    def key(precision: str) -> str:
        return reference_key(model, layout="packed", precision=precision, device=device)

    exact, half = key("32-true"), key("bf16-mixed")
    compile_layers(model)
    assert key("32-true") == exact
    assert key("bf16-mixed") != half


def test_padded_does_not_read_what_another_layout_wrote(tmp_path: Path) -> None:
    policy = load_model(MODEL, TOKENIZER)
    scored = []
    for layout in ("prefix_shared", "padded", "padded"):
        options = DataOptions(
            train=HELD_OUT, val_fraction=0, cache_dir=str(tmp_path), layout=layout
        )
        data = PreferenceDataModule(policy.tokenizer, options, progress=False)  # type: ignore[arg-type]
        data.setup("fit")
        reference = PrecomputedReference(progress=False)
        reference._score(rank_of_two(0), data, policy.model)
        scored.append(reference.scored)
    assert scored == [100, 100, 0]


def test_a_log_file_gets_a_line_now_and_then_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 5.0, 16.0, 20.0, 32.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    caplog.set_level("INFO", logger="minimind_dpo")
    with progress("Reference log-probs", 40) as advance:
        for _ in range(4):
            advance(10)
    # Seconds 5 and 20 are too soon after the line before.
    assert caplog.messages == [
        "Reference log-probs: 20/40 pairs in 16 s, 16 s left",
        "Reference log-probs: 40/40 pairs in 32 s",
    ]


def test_the_pass_says_whose_pairs_it_scores() -> None:
    visited, stores = [np.arange(150), np.arange(42)], [range(200), range(40)]
    scope = "Reference log-probs of the 192 of 240 pairs that this run visits: "
    for missing, ranks, rest in (
        (192, 1, "all are scored now"),
        (12, 1, "12 are scored now, the others are known"),
        (0, 1, "all are known"),
        (96, 2, "96 are scored now by this one of 2 processes"),
    ):
        assert reference_module._scope(visited, stores, missing, ranks) == scope + rest  # type: ignore[arg-type]
