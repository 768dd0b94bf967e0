"""`Evaluation`: policy and reference answer the same held-out prompts; measures, judge, verdict.

Both are sampled with the same draws (`sampling`), so that they differ where the policy has changed
and nowhere else. What is the reference's own is done once, however many policies are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.alarms import alarms
from minimind_dpo.evaluation.answers import Answer, Bar, Lend, Prompt
from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.judges.judge import Judge, JudgeError, Trust
from minimind_dpo.evaluation.judges.program import ProgramJudge
from minimind_dpo.evaluation.measures import (
    Facts,
    answer_kl,
    log_likelihoods,
    measure,
)
from minimind_dpo.evaluation.options import EvaluateOptions
from minimind_dpo.evaluation.pair_measures import PairMeasures, measure_pairs
from minimind_dpo.evaluation.sampling import draw_answers, sample_completions
from minimind_dpo.evaluation.scoring import single
from minimind_dpo.evaluation.text import Text
from minimind_dpo.evaluation.verdict import Case, Verdict
from minimind_dpo.options.problem import ConfigError, Problem

_PROBE_TOKENS = 8
_SETTINGS = ("max_new_tokens", "temperature", "seed")
"""What a verdict says of how its answers were drawn."""


@dataclass(frozen=True, slots=True)
class Task:
    """What policies are asked and scored on, and in which tokens.

    Attributes:
        prompts: Held-out prompts, at least one.
        pairs: Held-out pairs.
        texts: int32 (any length,) tokens of text that is not about the task.
        text: What that text is: `prompts`, or the file.
        end_ids: Tokens that end an answer.
        decode: Token ids to text without special tokens.
        collate: Lays pairs out for the models.
        batch_tokens: Most tokens of a forward pass.
    """

    prompts: Sequence[Prompt]
    pairs: Sequence[TokenizedPair]
    texts: Sequence[np.ndarray]
    text: str
    end_ids: Sequence[int]
    decode: Callable[[Sequence[int]], str]
    collate: Collator
    batch_tokens: int = 16384


class Evaluation:
    """Compares policies with one reference.

    Args:
        task: What they are asked.
        reference: The frozen reference.
        judge: Whose win rate decides; None for none.
        also: Checks the first judge.
        options: How answers are drawn.
        bar: Makes progress bars.
        drawn: Answers of one policy and of the reference, to judge in place of new ones; the
            votes of people are of these.
    """

    def __init__(
        self,
        task: Task,
        reference: Lend,
        judge: Judge | None,
        also: Judge | None,
        options: EvaluateOptions,
        bar: Bar,
        drawn: tuple[list[Answer], list[Answer]] | None = None,
    ) -> None:
        self.task = task
        self.reference = reference
        self.judges = (judge, also)
        self.options = options
        self.bar = bar
        self._drawn = drawn

    def __call__(self, policy: Lend) -> Verdict:
        """The verdict on a policy as it is now; the model, its modes and all seeds stay."""
        task = self.task
        answers = self._policy_answers(policy)
        kl = answer_kl(
            policy, self.reference, task.prompts, answers, task.collate, task.batch_tokens
        )
        with policy() as model:
            nlls = self._nlls(model)
        costs = measure(
            kl, answers, self._reference_answers, (nlls, *self._reference_text), task.text
        )
        judged, also = (
            None if judge is None else self._judged(judge, answers) for judge in self.judges
        )
        return Verdict(
            judged=judged,
            also=also,
            costs=costs,
            facts=self._facts(answers),
            pairs=self._pairs(policy),
            alarms=alarms(costs, judged),
            cases=self._cases(answers, judged, also),
            settings={k: getattr(self.options, k) for k in _SETTINGS},
        )

    def seconds_ahead(self, policy: Lend) -> float:
        """About how long the first verdict takes at most: every answer as long as allowed."""
        options, task = self.options, self.task
        first = [prompt.ids.tolist() for prompt in task.prompts[: options.batch_size]]
        with policy() as model:
            draw = partial(sample_completions, model, first, end_ids=[], batch_size=len(first))
            draw(max_new_tokens=1)  # what is slow once
            start, few, many = (_seconds(draw, n) for n in (1, 2, 2 + _PROBE_TOKENS))
        token = max(many - few, 0.0) / _PROBE_TOKENS
        batches = -(-len(task.prompts) // options.batch_size)
        sampling = 2 * batches * (start + options.max_new_tokens * token)
        return sampling + start * self._tokens() / sum(map(len, first))

    def _tokens(self) -> int:
        """Tokens that are scored at most, over both models and the judges."""
        task, longest = self.task, self.options.max_new_tokens
        answers = sum(len(prompt.ids) + longest for prompt in task.prompts)
        pairs = sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in task.pairs)
        judges = sum(judge.tokens_ahead for judge in self.judges if judge)
        return 2 * (answers + sum(map(len, task.texts)) + pairs) + judges

    def _answers(self, lend: Lend, title: str) -> list[Answer]:
        options, prompts = self.options, self.task.prompts
        with self.bar(title, len(prompts), "prompts") as advance, lend() as model:
            return draw_answers(
                model,
                [prompt.ids.tolist() for prompt in prompts],
                self.task.decode,
                end_ids=self.task.end_ids,
                max_new_tokens=options.max_new_tokens,
                temperature=options.temperature,
                seed=options.seed,
                batch_size=options.batch_size,
                advance=advance,
            )

    def _policy_answers(self, policy: Lend) -> list[Answer]:
        if self._drawn is None:
            return self._answers(policy, "Answers of the policy")
        answers, theirs = self._drawn
        self._drawn = [], theirs  # of one policy, and no other
        if not answers:
            why = "are of one policy; judge the others by themselves"
            raise ConfigError([Problem("judge.votes", why)])
        return answers

    @cached_property
    def _reference_answers(self) -> list[Answer]:
        if self._drawn is not None:
            return self._drawn[1]
        return self._answers(self.reference, "Answers of the reference")

    def _nlls(self, model: PreTrainedModel) -> np.ndarray:
        """Negative log-likelihood of each text in nats: float64 (texts,)."""
        task = self.task
        pairs = [single(ids[:1], ids[1:]) for ids in task.texts]
        return -log_likelihoods(model, pairs, task.collate, task.batch_tokens)[:, 0]

    @cached_property
    def _reference_text(self) -> tuple[np.ndarray, np.ndarray]:
        """The reference's, and the tokens that are scored."""
        with self.reference() as model:
            nlls = self._nlls(model)
        return nlls, np.array([len(ids) - 1 for ids in self.task.texts], np.float64)

    def _judged(self, judge: Judge, answers: Sequence[Answer]) -> Judged:
        theirs = self._reference_answers
        longer = [len(a.ids) - len(b.ids) for a, b in zip(answers, theirs, strict=True)]
        try:
            preferences = judge.compare(self.task.prompts, answers, theirs)
            trust = judge.trust
        except JudgeError as error:  # what needs no judge is told all the same
            preferences = np.full(len(answers), np.nan)
            words = Text("nothing here, since it failed", "无，因为它出错了")
            trust = Trust(words, unable=str(error))
        return Judged(judge.name, trust, preferences, np.array(longer, np.float64))

    def _facts(self, answers: Sequence[Answer]) -> Facts | None:
        for judge in self.judges:
            if isinstance(judge, ProgramJudge):
                ours, theirs = (
                    judge.facts(self.task.prompts, each)
                    for each in (answers, self._reference_answers)
                )
                return None if ours is None or theirs is None else Facts.of(ours, theirs)
        return None

    def _pairs(self, policy: Lend) -> PairMeasures | None:
        task = self.task
        if not task.pairs:
            return None
        with (
            self.bar("Held-out pairs, policy", len(task.pairs), "pairs") as advance,
            policy() as model,
        ):
            ours = log_likelihoods(model, task.pairs, task.collate, task.batch_tokens, advance)
        return measure_pairs(task.pairs, ours, self._reference_pairs, task.decode)

    @cached_property
    def _reference_pairs(self) -> np.ndarray:
        """Log-likelihoods under the reference: float64 (pairs, 2), nats.

        Not those that training computed ahead, whose precision may have been another.
        """
        task, title = self.task, "Held-out pairs, reference"
        with self.bar(title, len(task.pairs), "pairs") as advance, self.reference() as model:
            return log_likelihoods(model, task.pairs, task.collate, task.batch_tokens, advance)

    def _cases(self, answers: Sequence[Answer], *judged: Judged | None) -> tuple[Case, ...]:
        by_judge = {each.judge: each.preferences for each in judged if each}
        return tuple(
            Case(prompt, ours, theirs, {name: float(p[i]) for name, p in by_judge.items()})
            for i, (prompt, ours, theirs) in enumerate(
                zip(self.task.prompts, answers, self._reference_answers, strict=True)
            )
        )


def _seconds(draw: Callable[..., Any], tokens: int) -> float:
    start = time.perf_counter()
    draw(max_new_tokens=tokens)
    return time.perf_counter() - start
