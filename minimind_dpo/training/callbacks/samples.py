"""Answers to fixed prompts, before, during and after training: what curves do not show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from transformers import PreTrainedTokenizerBase

from minimind_dpo.disk import write_text
from minimind_dpo.evaluation.sampling import sample_answers
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.signals import StopRequest


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
        stop: Set by signal handlers; nobody waits for answers once it is.
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
        stop: StopRequest | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.file = folder / "samples.md"
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.every = every
        self.seed = seed
        self.stop = stop or StopRequest()
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
        # NOTE: one of several ranks may not end alone.
        with self.stop.giving_up() if trainer.world_size == 1 else nullcontext():
            answers = self._answers(module)
        text = "\n\n".join(
            f"**{prompt}**\n\n{quoted(answer)}"
            for prompt, answer in zip(self.prompts, answers, strict=True)
        )
        write_block(self.file, step, text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", text, step)
            elif hasattr(logger, "log_text"):
                rows = [list(row) for row in zip(self.prompts, answers, strict=True)]
                logger.log_text("samples", columns=["prompt", "answer"], data=rows, step=step)

    def _answers(self, module: DPOModule) -> list[str]:
        return sample_answers(
            module.policy,
            self.tokenizer,
            [[{"role": "user", "content": prompt}] for prompt in self.prompts],
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
        )


def quoted(answer: str) -> str:
    """An answer as a quotation, in which no line looks like a heading of this file."""
    return "\n".join(f"> {line}".rstrip() for line in answer.splitlines())


def write_block(path: Path, step: int, text: str) -> None:
    """Add the answers of a step to a file, in place of those that an earlier launch left there.

    Blocks of later steps go too: the run that wrote them went on from a state after this one.
    """
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    blocks = re.split(r"^(?=## Step \d+$)", before, flags=re.M)
    kept = [block for block in blocks if block and int(block.split()[2]) < step]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(kept) + f"## Step {step}\n\n{text}\n\n")
