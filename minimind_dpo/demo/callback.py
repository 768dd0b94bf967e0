"""The embedded task's own judge, before and after a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from transformers import PreTrainedModel

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo.evaluate import DemoScores, evaluate, held_out_prompts
from minimind_dpo.demo.report import before_after_table

console = Console()


class DemoJudge(Callback):
    """Samples and judges answers of the policy, and keeps it as it started for the comparison.

    Args:
        policy: What is trained.
        chat: Encodes the questions.
        seed: Of the draws.
    """

    def __init__(self, policy: PreTrainedModel, chat: Chat, seed: int) -> None:
        self.policy = policy
        self.chat = chat
        self.seed = seed
        self._start: PreTrainedModel | None = None
        self._before: DemoScores | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Judge the policy as it starts: a state that is resumed is put into it after this."""
        if stage == "fit" and trainer.is_global_zero:
            self._start = copy.deepcopy(self.policy)
            with console.status("Sampling and judging answers before training"):
                self._before = self._evaluate()

    def conclude(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
        """Judge the policy as it is now, print the table, and return its numbers."""
        with console.status("Sampling and judging answers after training"):
            scores = self._evaluate()
        assert self._before is not None
        first, last = (
            replace(each, preference_accuracy=metrics.get("rewards/accuracies"))
            for each, metrics in ((self._before, before), (scores, after))
        )
        console.print(before_after_table(first, last))
        return {"before": first.numbers(), "after": last.numbers()}

    def _evaluate(self) -> DemoScores:
        return evaluate(
            self.policy, self.chat, held_out_prompts(), reference=self._start, seed=self.seed
        )
