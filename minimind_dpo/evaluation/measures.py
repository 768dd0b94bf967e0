"""What a policy costs: measured on the same prompts as the reference, without a judge.

Every change is paired: prompt by prompt, the policy's number against the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.answers import Answer, Lend, Prompt
from minimind_dpo.evaluation.form import repeated_share
from minimind_dpo.evaluation.scoring import frozen, pair_batches, score, single
from minimind_dpo.evaluation.statistics import Estimate, bootstrap
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.objective.lm_head import Head
from minimind_dpo.objective.logps import predictor_states, token_kl


@dataclass(frozen=True, slots=True)
class Change:
    """A number of both models.

    Attributes:
        policy: The policy's.
        reference: The reference's.
        change: The difference, or the ratio, with its interval over prompts.
    """

    policy: float
    reference: float
    change: Estimate

    @classmethod
    def difference(cls, policy: np.ndarray, reference: np.ndarray) -> Change:
        """Of the means of two columns, float (n,) each."""
        change = bootstrap([policy - reference])
        return cls(float(policy.mean()), float(reference.mean()), change)

    @classmethod
    def ratio(cls, policy: np.ndarray, reference: np.ndarray) -> Change:
        """Of the means of two columns, float (n,) each, the reference's above 0."""
        change = bootstrap([policy, reference], lambda p, r: p / r)
        return cls(float(policy.mean()), float(reference.mean()), change)


@dataclass(frozen=True, slots=True)
class Facts:
    """Answers whose content a program can check.

    Attributes:
        known: Prompts that the reference answers right.
        lost: Those of them that the policy answers wrong.
        gained: Prompts that the policy answers right and the reference wrong.
    """

    known: int
    lost: int
    gained: int

    @classmethod
    def of(cls, policy: np.ndarray, reference: np.ndarray) -> Facts:
        """Count; bool (n,) each, whether the answers are right."""
        lost, gained = (reference & ~policy).sum(), (policy & ~reference).sum()
        return cls(int(reference.sum()), int(lost), int(gained))


@dataclass(frozen=True, slots=True)
class Costs:
    """What changed beside what the judge sees.

    Attributes:
        kl: KL(policy || reference) in nats an answer, on the policy's own answers; for answers
            that were cut, of their beginning.
        kl_per_token: The same in nats a token.
        length: Tokens an answer, its end among them; a ratio.
        ended: Share of answers that end their turn; a difference.
        repetition: Share of an answer's 4-grams that are repeated; a difference.
        perplexity: Of text that is not about the task; a ratio.
        text: What text: `prompts`, or the file.
    """

    kl: Estimate
    kl_per_token: Estimate
    length: Change
    ended: Change
    repetition: Change
    perplexity: Change | None
    text: str


def measure(
    kl: np.ndarray,
    policy: Sequence[Answer],
    reference: Sequence[Answer],
    nlls: tuple[np.ndarray, np.ndarray, np.ndarray],
    text: str,
) -> Costs:
    """Put what was measured prompt by prompt together.

    Args:
        kl: float (n,), nats, of each of the policy's answers.
        policy: n answers.
        reference: n answers to the same prompts.
        nlls: float (texts,) each: negative log-likelihood in nats of each text under policy and
            reference, and its scored tokens.
        text: What text that is.
    """
    ours, theirs = (_form(answers) for answers in (policy, reference))
    return Costs(
        kl=bootstrap([kl]),
        kl_per_token=bootstrap([kl, ours[0]], lambda nats, tokens: nats / tokens),
        length=Change.ratio(ours[0], theirs[0]),
        ended=Change.difference(ours[1], theirs[1]),
        repetition=Change.difference(ours[2], theirs[2]),
        perplexity=_perplexity(*nlls) if len(nlls[0]) else None,
        text=text,
    )


def _form(answers: Sequence[Answer]) -> np.ndarray:
    """Length, whether it ended, and share of repeated 4-grams: float (3, n)."""
    rows = [(len(a.ids), a.ended, repeated_share(a.content_ids.tolist())) for a in answers]
    return np.array(rows, np.float64).T


def _perplexity(policy: np.ndarray, reference: np.ndarray, tokens: np.ndarray) -> Change:
    def ratio(p: np.ndarray, r: np.ndarray, t: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp((p - r) / t))

    ours, theirs = (float(np.exp(nll.sum() / tokens.sum())) for nll in (policy, reference))
    return Change(ours, theirs, bootstrap([policy, reference, tokens], ratio))


def answer_kl(
    policy: Lend,
    reference: Lend,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    collate: Collator,
    batch_tokens: int,
) -> np.ndarray:
    """KL(policy || reference) along answers that the policy drew, exact at each of their tokens.

    Returns:
        float64 (answers,), nats an answer.
    """
    pairs = [single(p.ids, a.ids) for p, a in zip(prompts, answers, strict=True)]
    total = np.zeros(len(pairs))
    for places, batch in pair_batches(pairs, collate, batch_tokens):
        states, heads = [], []
        for lend in (policy, reference):
            with lend() as model, frozen(model):
                use_planned_attention(model, batch.plan is not None)
                laid_out = batch.to(model.device)
                states.append(predictor_states(model, laid_out)[0])
                heads.append(Head.of(model))
        scored = int(batch.lengths[: len(places)].sum())  # the others are the pairs' second sides
        with torch.no_grad():
            kl = token_kl(states[0][:scored], heads[0], states[1][:scored], heads[1])
        nats = kl.double().cpu().numpy()
        total[places] = np.bincount(batch.sequence_id[:scored].numpy(), nats, len(places))
    return total


def log_likelihoods(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    collate: Collator,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Log-likelihoods of both sides of some pairs: float64 (pairs, 2), nats."""
    sums = np.zeros((len(pairs), 2))
    with frozen(model):
        for places, batch in pair_batches(pairs, collate, batch_tokens):
            logps = score(model, batch.to(model.device))
            sides = logps.sum_per_sequence(logps.token_logps.double()).cpu().numpy()
            sums[places] = sides.reshape(2, -1).T
            advance(len(places))
    return sums
