"""Answers to the same prompts before, during and after training: what curves do not show."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.disk import write_text
from minimind_dpo.evaluation.sampling import sample_answers
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.signals import GivenUpError, StopRequest

PROMPTS_OF_DATA = 4
"""How many prompts are taken from the data where none are given."""
SHOWN = 600
"""Characters of a prompt that are shown."""


class SampledAnswers(Callback):
    """Samples answers at the start and the end, and at each validation or every n steps if asked.

    They go to TensorBoard as text, to other loggers as a table where they have one, and to
    `samples.md` in the run's folder.

    Args:
        chat: Encodes prompts as those of the training data.
        prompts: What a person types, each a user's turn, or plain text without a chat template;
            None for some of the data module's own, as they are trained on.
        folder: The run's folder.
        max_new_tokens: Longest answer.
        temperature: Of sampling; 0 takes the most probable token each time.
        every: `val`, a number of optimizer steps, or None for the start and the end alone.
        seed: The same draws each time, so that a change of answer is a change of policy.
        stop: Set by signal handlers; nobody waits for answers once it is.
    """

    def __init__(
        self,
        chat: Chat,
        prompts: Sequence[str] | None,
        *,
        folder: Path,
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        every: str | int | None = None,
        seed: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.chat = chat
        self.prompts = prompts
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
        if isinstance(self.every, int) and trainer.global_step % self.every == 0:
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
        if not trainer.is_global_zero or step == self._newest:
            return
        self._newest = step
        if module.divergence() is not None:
            return  # there is nothing to draw from, which on a GPU ends the process
        prompts, ids = self._prompts(trainer)
        if not prompts:
            return
        try:
            with self.stop.giving_up(module.policy):
                answers = sample_answers(
                    module.policy,
                    self.chat,
                    ids,
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    seed=self.seed,
                )
        except GivenUpError:
            return
        text = "\n\n".join(
            f"{headed(prompt)}\n\n{quoted(answer)}"
            for prompt, answer in zip(prompts, answers, strict=True)
        )
        write_block(self.file, step, text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("samples", text, step)
            elif hasattr(logger, "log_text"):
                rows = [list(row) for row in zip(prompts, answers, strict=True)]
                logger.log_text("samples", columns=["prompt", "answer"], data=rows, step=step)

    def _prompts(self, trainer: L.Trainer) -> tuple[list[str], list[list[int]]]:
        """Texts and token ids of the prompts; none where neither prompts nor data are known."""
        chat = self.chat
        if self.prompts is not None:
            return list(self.prompts), [chat.encode_prompt(chat.question(p)) for p in self.prompts]
        data = getattr(trainer, "datamodule", None)
        ids = data.some_prompts(PROMPTS_OF_DATA) if isinstance(data, PreferenceDataModule) else []
        return [chat.decode(prompt, special=True) for prompt in ids], ids


def headed(prompt: str) -> str:
    """A prompt, or the end of a long one, above its answer; several lines as a block of code."""
    shown = prompt.strip("\n")
    if len(shown) > SHOWN:
        shown = f"… {shown[-SHOWN:]}"
    if "\n" not in shown:
        return f"**{shown}**"
    return textwrap.indent(shown, "    ", lambda line: True)


def quoted(answer: str) -> str:
    """An answer as a quotation, in which no line looks like a heading of this file."""
    return "\n".join(f"> {line}".rstrip() for line in answer.splitlines())


def write_block(path: Path, step: int, text: str) -> None:
    """Add the answers of a step to a file, in place of those that an earlier launch left there.

    Blocks of later steps go too: the run that wrote them went on from a state after this one. What
    stands before the first block stays.
    """
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    note, *blocks = re.split(r"^(?=## Step \d+$)", before, flags=re.M)
    earlier = [block for block in blocks if int(block.split()[2]) < step]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, note + "".join(earlier) + f"## Step {step}\n\n{text}\n\n")
