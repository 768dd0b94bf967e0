"""`data.batch_size=auto`: the step stays, and the card decides how it is cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composed import composed
from transformers import AutoModelForCausalLM, PreTrainedModel

from minimind_dpo.config.compose import compose
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.models.load import load_model  # noqa: F401  (makes v_learn known)
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.run import batch_size
from minimind_dpo.run.batch_size import Memory, batch_size_for, spread_step
from minimind_dpo.run.build import build_datamodule, build_tokenizer
from minimind_dpo.run.folder import Run
from minimind_dpo.run.plan import RunPlan

GB = 10**9
CARDS = (8, 12, 24, 48, 80)


def tokens_of_usual_pairs(pairs: int) -> int:
    """About 1,000 tokens a pair (MiniMind's data at max_length 1024); 1,900 the longest alone."""
    return max(1900, 1000 * pairs)


def on_meta(generation: str, **fields: Any) -> PreTrainedModel:
    table = GENERATIONS[generation]
    fields = dict(table.defaults) | {"vocab_size": 6400} | fields
    config = transformers_config(table, False, fields, 0.0)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def sizes(memory: Memory) -> list[int]:
    return [batch_size_for(memory, card * GB, 32, tokens_of_usual_pairs) for card in CARDS]


def shape(width: int, layers: int, feed_forward: int) -> dict[str, int]:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": width // 8}
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": feed_forward}
    return heads | sizes


V3, LARGE, SMALL = shape(768, 8, 2432), shape(768, 16, 2048), shape(512, 8, 1408)
"""minimind-3 (64M), the largest of v1 and v2 (105M), and their smallest (26M)."""


def test_minimind_3_on_cards_of_8_to_80_gb() -> None:
    model = on_meta("v3", **V3)
    mixed = Memory.of(model, mixed=True)
    # 63.9M weights of 16 + 2 bytes; 8 x (44 x 768 + 8 x 2432) and 24 x 3,200 a token.
    assert mixed.fixed == 18 * sum(p.numel() for p in model.parameters())
    assert mixed.token == 8 * (33_792 + 19_456) + 76_800 == 502_784
    # 0.8 x 8 GB less 1.15 GB are 10,441 tokens, 0.8 x 12 GB 16,806, 0.8 x 24 GB 35,900.
    assert sizes(mixed) == [8, 16, 32, 32, 32]
    # In float32 a token takes 928,768: 5,788 tokens, 9,233, 19,569, 40,242.
    assert sizes(Memory.of(model, mixed=False)) == [4, 8, 16, 32, 32]
    # With checkpointing 4 x 768 x 11 for the layers, one of them whole: 163,840.
    assert Memory.of(model, mixed=True, checkpointing=True).token == 33_792 + 53_248 + 76_800
    assert sizes(Memory.of(model, mixed=True, checkpointing=True)) == [32, 32, 32, 32, 32]
    online = Memory.of(model, mixed=True, online=True)
    assert online.fixed - mixed.fixed == 4 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("generation", "fields", "expected"),
    [
        ("v1", SMALL, [16, 16, 32, 32, 32]),
        ("v1", LARGE, [4, 8, 16, 32, 32]),
        ("v2a", SMALL, [16, 16, 32, 32, 32]),
        ("v2", SMALL, [16, 16, 32, 32, 32]),
        ("v_learn", shape(512, 8, 2048), [8, 16, 32, 32, 32]),
    ],
)
def test_the_other_generations(
    generation: str, fields: dict[str, Any], expected: list[int]
) -> None:
    assert sizes(Memory.of(on_meta(generation, **fields), mixed=True)) == expected


def test_frozen_weights_need_no_optimizer() -> None:
    model = on_meta("v1", **LARGE)
    whole = Memory.of(model, mixed=True)
    trained = 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index == 1)
        trained += parameter.numel() * (index == 1)
    adapters = Memory.of(model, mixed=True)
    assert adapters.token == whole.token
    assert adapters.fixed == 6 * sum(p.numel() for p in model.parameters()) + 12 * trained


def test_what_nothing_fits_is_one_pair() -> None:
    assert batch_size_for(Memory(6 * GB, 500_000), 6 * GB, 32, tokens_of_usual_pairs) == 1


def test_a_resumed_step_stays_cut_as_it_was_where_that_fits() -> None:
    memory = Memory(GB, 500_000)
    assert batch_size_for(memory, 80 * GB, 32, tokens_of_usual_pairs, preferred=4) == 4
    assert batch_size_for(memory, 8 * GB, 32, tokens_of_usual_pairs, preferred=32) == 8
    # Of a step of other size, 24 is no part of this one.
    assert batch_size_for(memory, 80 * GB, 32, tokens_of_usual_pairs, preferred=24) == 32


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how many bytes of a device of 80 GB are free."""
    monkeypatch.setenv("MINIMIND_DPO_BATCH_SIZE", "")  # what is decided is forgotten afterwards

    def have(free: float) -> None:
        properties = SimpleNamespace(total_memory=80 * GB)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(free), 80 * GB))

    return have


def opened(folder: Path, *overrides: str) -> tuple[Config, PreferenceDataModule, RunPlan]:
    """The demo's pairs, 32 a step, on whatever device there is."""
    where = f"data.cache_dir={folder}"
    step = ["data.batch_size=auto", "trainer.accumulate_grad_batches=4", "trainer.accelerator=auto"]
    config = compose(["experiment=demo", where, *step, *overrides])
    data = build_datamodule(config, build_tokenizer(config), progress=False)
    data.prepare_data()
    return config, data, RunPlan.of(config, data)


def test_a_step_has_the_same_pairs_on_every_card(
    tmp_path: Path, card: Callable[[float], None]
) -> None:
    model, run = on_meta("v3", **V3), Run(tmp_path)
    steps = {}
    # 32 pairs of the demo have 1,300 tokens at most, 16 have 640: 2.2 and 1.6 GB in float32.
    for free in (3.0 * GB, 2.2 * GB, 1.0 * GB):
        config, data, plan = opened(tmp_path)
        card(free)
        config, plan = spread_step(config, model, data, run, plan)
        size, accumulate = config.data.batch_size, config.trainer.accumulate_grad_batches
        assert size * accumulate == plan.pairs_per_step == 32
        assert plan.cut.startswith(f"{size} pair")
        micro_batches = data.train_sampler(plan.division).plan(0)[0]
        steps[size] = [
            sorted(row for batch in micro_batches[i : i + accumulate] for row in batch.rows)
            for i in range(0, len(micro_batches), accumulate)
        ]
    assert sorted(steps) == [1, 16, 32]
    assert steps[1] == steps[16] == steps[32]
    assert "It may not fit: use model.gradient_checkpointing=true" in plan.cut


@pytest.mark.parametrize(
    ("overrides", "aux_coef", "reason"),
    [
        (["loss.type=aot"], 0.0, "loss.type=aot sorts over a micro-batch"),
        ([], 5e-4, "the balance loss of the experts"),
        (["trainer.limit_train_batches=4"], 0.0, "limit_train_batches counts micro-batches"),
        (["trainer.limit_train_batches=1"], 0.0, "limit_train_batches counts micro-batches"),
        (["trainer.limit_val_batches=1"], 0.0, "limit_val_batches counts micro-batches"),
        (["trainer.limit_val_batches=0.5"], 0.0, "limit_val_batches counts micro-batches"),
        (["schedule.name=notebook"], 0.0, "schedule.name=notebook counts micro-batches"),
    ],
)
def test_a_cut_that_would_train_otherwise_is_not_made(
    overrides: list[str],
    aux_coef: float,
    reason: str,
    tmp_path: Path,
    card: Callable[[float], None],
) -> None:
    config, data, plan = opened(tmp_path, *overrides)
    card(80 * GB)
    settled, told = spread_step(config, on_meta("v3", **V3), data, Run(tmp_path), plan, aux_coef)
    assert settled is config
    assert (told.batch_size, told.division.accumulate) == (8, 4)
    assert told.cut.startswith("data.batch_size=auto stays 8: ")
    assert reason in told.cut


@pytest.mark.parametrize("limit", ["limit_train_batches=1.0", "limit_val_batches=0"])
def test_a_limit_that_counts_no_micro_batch_leaves_the_cut_open(limit: str) -> None:
    assert batch_size._obstacle(composed([f"trainer.{limit}"]), 0.0) == ""


def test_without_a_gpu_auto_is_8_pairs(tmp_path: Path) -> None:
    config, data, plan = opened(tmp_path)
    assert spread_step(config, on_meta("v3", **V3), data, Run(tmp_path), plan) == (config, plan)
    assert (plan.batch_size, plan.division.accumulate, plan.cut) == (8, 4, "")


def test_no_rank_of_a_run_takes_more_than_the_smallest_card_has(
    card: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    card(70 * GB)
    memory = [80 * GB, 24 * GB, 80 * GB]
    cards = [SimpleNamespace(total_memory=bytes_) for bytes_ in memory]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: cards[index])
    assert batch_size._free_bytes([0, 2]) == 70 * GB
    assert batch_size._free_bytes([0, 1]) == batch_size._free_bytes(None) == 24 * GB
    assert batch_size._free_bytes(1) == 70 * GB
