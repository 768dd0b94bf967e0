"""The embedded task's own judge, before and after a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from rich.console import Console

from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo.evaluate import DemoScores, evaluate, held_out_prompts
from minimind_dpo.demo.report import before_after_table
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.run.build import build_policy

console = Console()


class Judge:
    """Samples and judges answers of the policy as it is when asked.

    Args:
        config: Of the run.
        policy: What is trained.
        chat: Encodes the questions.
    """

    def __init__(self, config: Config, policy: LoadedModel, chat: Chat) -> None:
        self.config = config
        self.policy = policy
        self.chat = chat
        self.prompts = held_out_prompts()
        self.scores: DemoScores | None = None

    def before(self, metrics: dict[str, float]) -> None:
        """Judge the policy as it starts."""
        with console.status("Sampling and judging answers before training"):
            self.scores = self._evaluate(metrics)

    def after(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Judge the trained policy, print the table, and return its numbers."""
        with console.status("Sampling and judging answers after training"):
            after = self._evaluate(metrics)
        assert self.scores is not None
        console.print(before_after_table(self.scores, after))
        return {"before": self.scores.numbers(), "after": after.numbers()}

    def _evaluate(self, metrics: dict[str, float]) -> DemoScores:
        reference = build_policy(self.config, self.chat.tokenizer).model
        torch.nn.Module.to(reference, self.policy.model.device)
        scores = evaluate(
            self.policy.model,
            self.chat,
            self.prompts,
            reference=reference,
            seed=self.config.seed,
        )
        return replace(scores, preference_accuracy=metrics.get("rewards/accuracies"))
