"""Answers to fixed prompts, before, during and after training: what curves do not show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import PreTrainedTokenizerBase

from minimind_dpo.models.generate import sample_answers
from minimind_dpo.training.module import DPOModule


class SampledAnswers(Callback):
    """Samples answers at each validation (or every n steps) and at the end.

    They go to TensorBoard as text, to other loggers as a table where they have one, and to
    `samples.md` in the run's folder.

    Args:
        tokenizer: The policy's.
        prompts: User turns.
        folder: The run's folder.
        max_new_tokens: Longest answer.
        temperature: Of sampling; 0 takes the most probable token each time.
        every: `val`, or a number of optimizer steps.
        seed: The same draws each time, so that a change of answer is a change of policy.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        *,
        folder: Path,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        every: str | int = "val",
        seed: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.file = folder / "samples.md"
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.every = every
        self.seed = seed
        self._newest = -1

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """At each validation, the one before training included."""
        if self.every == "val":
            self._sample(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Every n optimizer steps; at the first batch this is before any training."""
        if self.every != "val" and trainer.global_step % int(self.every) == 0:
            self._sample(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Before training, where no validation has done it."""
        if trainer.global_step == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What training has led to."""
        self._sample(trainer, pl_module)

    def _sample(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DPOModule)
        step = trainer.global_step
        if not trainer.is_global_zero or step == self._newest or not self.prompts:
            return
        self._newest = step
        answers = sample_answers(
            module.policy,
            self.tokenizer,
            [[{"role": "user", "content": prompt}] for prompt in self.prompts],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )
        text = "\n\n".join(
            f"**{prompt}**\n\n{answer}"
            for prompt, answer in zip(self.prompts, answers, strict=True)
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"## Step {step}\n\n{text}\n\n")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", text, step)
            elif hasattr(logger, "log_text"):
                rows = [list(row) for row in zip(self.prompts, answers, strict=True)]
                logger.log_text("samples", columns=["prompt", "answer"], data=rows, step=step)
