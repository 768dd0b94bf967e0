"""The warm way through Lightning's loop: `DPOModule`, the data module and their callbacks.

What it costs more than the plain loop is what the loop, the guard, the metrics of logged steps
(every tenth and the first) and a progress callback cost.
"""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from transformers import AutoTokenizer

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.lightning_seams import GuardedHalfPrecision
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.reference import PrecomputedReference
from speed.clock import Clock
from speed.request import Request, Skipped
from speed.ways import CLIP, FirstStep, Run, planned
from speed.workload import open_store


class _Pairs(PreferenceDataModule):
    """The request's rows, in order."""

    def __init__(self, request: Request) -> None:
        tokenizer = AutoTokenizer.from_pretrained(request.tokenizer)
        options = DataOptions(
            max_length=request.max_length,
            batch_size=request.batch_size,
            val_fraction=0,
            shuffle=False,
            num_workers=0,
        )
        super().__init__(tokenizer, options, progress=False)
        self.train_store = open_store(request.store)
        self._rows = np.array([*request.warmup, *request.rows], dtype=np.int64)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.train_rows = self._rows


class _Timed(Callback):
    """Times what follows the first step, and notes that step's loss and gradient."""

    def __init__(self, clock: Clock, untimed: int) -> None:
        self.clock, self.untimed = clock, untimed
        self.first: FirstStep | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        assert isinstance(pl_module, DPOModule)
        if trainer.global_step == 1:
            pl_module.guard.read(trainer)
            self.first = FirstStep(float(outputs["loss"]), pl_module.guard.norm)
        if trainer.global_step == 1 + self.untimed:
            self.clock.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.stop("steps")


def through_trainer(request: Request, clock: Clock) -> Run:
    """Run it."""
    if len(request.warmup) != request.batch_size:
        raise Skipped(
            "the data module's steps all have --batch-size pairs: leave --warmup-pairs out"
        )
    policy = planned(request, "prefix_shared")
    module = DPOModule(
        policy,
        PrecomputedReference(batch_tokens=request.batch_tokens, progress=False),
        LossOptions(beta=request.beta),
        optimizer=OptimizerOptions(lr=request.lr),
        schedule=ScheduleOptions("constant", warmup_steps=0),
    )
    timed = _Timed(clock, request.untimed)
    trainer = L.Trainer(
        accelerator="gpu" if request.device == "cuda" else "cpu",
        devices=1,
        precision={"float32": "32-true", "bfloat16": "bf16-mixed"}.get(request.precision),
        plugins=GuardedHalfPrecision(request.device) if request.precision == "float16" else None,
        max_epochs=1,
        gradient_clip_val=CLIP,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=False,
        callbacks=[Throughput(), timed],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        trainer.fit(module, datamodule=_Pairs(request))
    assert timed.first is not None
    return Run(timed.first, policy)
