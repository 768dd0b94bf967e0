"""Sixteen optimizer steps of TRL 1.16's trainer, repeated by DPOModule in every layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from golden_support import arrays, numbers, write_hub_folder
from torch.utils.data import DataLoader
from training_support import Memory
from transformers import AutoModelForCausalLM

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.batches.step_plan import StepSampler, StepShape
from minimind_dpo.data.datamodule import LaidOutPairs
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.reference import OnlineReference

LAYOUTS = ("prefix_shared", "packed", "padded")


def read_pairs(max_length: int) -> list[TokenizedPair]:
    pairs = []
    for i, record in enumerate(numbers("trl/pairs")):
        row = {k: np.array(v, dtype=np.int32) for k, v in record.items()}
        room = max_length - len(row["prompt_ids"])
        pairs.append(
            TokenizedPair(
                row["prompt_ids"], row["chosen_ids"][:room], row["rejected_ids"][:room], index=i
            )
        )
    return pairs


def run_sixteen_steps(
    folder: Path, layout: str, accumulate: int = 1
) -> tuple[dict[int, dict[str, float]], DPOModule, dict[str, Any]]:
    golden = numbers("trl/trajectory")
    config = golden["config"]
    pairs = read_pairs(config["max_length"])
    write_hub_folder(folder, numbers("trl/tiny_qwen3"), arrays("trl/tiny_qwen3"))
    models = [AutoModelForCausalLM.from_pretrained(folder) for _ in range(2)]
    for model in models:
        use_planned_attention(model, layout != "padded")
    module = DPOModule(
        models[0],
        OnlineReference(models[1]),
        optimizer=OptimizerOptions(lr=config["learning_rate"], eps=config["eps"]),
        schedule=ScheduleOptions("constant", warmup_steps=0),
    )
    collate = Collator(layout, max_length=config["max_length"])
    lengths = [[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]
    batch_size = config["per_device_train_batch_size"] // accumulate
    sampler = StepSampler(
        np.arange(len(pairs)),
        collate.tokens(np.array(lengths)),
        StepShape(batch_size, accumulate),
        shuffle=False,
    )
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config["max_grad_norm"],
        logger=memory,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, DataLoader(LaidOutPairs(pairs, collate), sampler=sampler, batch_size=None))
    return memory.steps, module, golden


@pytest.mark.parametrize(
    ("layout", "accumulate"), [*((layout, 1) for layout in LAYOUTS), ("prefix_shared", 2)]
)
def test_sixteen_steps_give_the_metrics_of_trl(
    tmp_path: Path, layout: str, accumulate: int
) -> None:
    steps, module, golden = run_sixteen_steps(tmp_path, layout, accumulate)
    assert sorted(steps) == list(range(1, 17))
    for number, expected in enumerate(golden["steps"], start=1):
        got = {name.removeprefix("train/"): value for name, value in steps[number].items()}
        assert got["loss"] == pytest.approx(expected["loss"], rel=1e-4), number
        assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3), number
        assert got["learning_rate"] == expected["lr_used"]
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins"):
            assert got[name] == pytest.approx(expected[name], abs=1e-4), (number, name)
        for name in ("logps/chosen", "logps/rejected", "entropy"):
            assert got[name] == pytest.approx(expected[name], rel=1e-4), (number, name)
        # A tie counts half here; TRL counts it as a wrong preference, all of them at step 1.
        untied = got["rewards/accuracies"] - got["rewards/ties"] / 2
        assert untied == pytest.approx(expected["rewards/accuracies"], abs=1e-6), number
    # The golden file has [norm, sum] of every final parameter.
    final = dict(module.policy.named_parameters())
    for name, (norm, _) in golden["final_params_norm_sum"].items():
        assert float(final[name].detach().double().norm()) == pytest.approx(norm, rel=1e-5), name
    assert torch.is_grad_enabled()
