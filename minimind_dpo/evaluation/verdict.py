"""The verdict on a policy: did it get better, by how much, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judged import CANNOT_TELL, NOT_JUDGED, Judged
from minimind_dpo.evaluation.measures import Costs, Facts
from minimind_dpo.evaluation.pair_measures import PairMeasures
from minimind_dpo.evaluation.statistics import Estimate, share_interval


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt with both answers and what the judges prefer.

    Attributes:
        prompt: The prompt.
        policy: The policy's answer.
        reference: The reference's.
        preferences: By judge, in [-1, 1], 1 the policy's answer; NaN where it could not judge.
    """

    prompt: Prompt
    policy: Answer
    reference: Answer
    preferences: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values, without tokens; a preference that is missing is null."""
        answers = {"policy": self.policy, "reference": self.reference}
        return {
            "prompt": self.prompt.turns,
            "source": self.prompt.source,
            **{
                side: {"text": answer.text, "tokens": len(answer.ids), "ended": answer.ended}
                for side, answer in answers.items()
            },
            "preferences": {k: None if np.isnan(v) else v for k, v in self.preferences.items()},
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of a policy against its reference.

    Attributes:
        judged: By the judge that decides; None without one.
        also: By the second judge.
        costs: What changed beside what the judge sees.
        facts: Where a judge can tell right from wrong.
        pairs: How held-out pairs are ranked; None where there are none.
        alarms: Sentences on answers whose form collapses.
        cases: Every prompt with its answers.
        settings: What the answers were drawn with.
    """

    judged: Judged | None
    also: Judged | None
    costs: Costs
    facts: Facts | None
    pairs: PairMeasures | None
    alarms: tuple[str, ...]
    cases: tuple[Case, ...]
    settings: dict[str, Any]

    @property
    def decision(self) -> str:
        """Better, not better, worse, cannot tell, or not judged."""
        return NOT_JUDGED if self.judged is None else self.judged.decision

    @property
    def agreement(self) -> Estimate | None:
        """Share of prompts that both judges decide on which they decide alike."""
        if self.judged is None or self.also is None:
            return None
        first, second = (np.sign(each.preferences) for each in (self.judged, self.also))
        both = (first * second != 0) & ~np.isnan(first * second)
        return share_interval((first == second)[both].astype(float)) if both.any() else None

    @property
    def sentence(self) -> str:
        """Decision, win rate and judge; then what it costs."""
        return f"{self.decision}: {_won(self)}; cost: {', '.join(_costs(self))}"

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do so that judges can judge which cannot yet."""
        judges = (self.judged, self.also)
        return tuple(each.trust.advice for each in judges if each and each.trust.advice)

    def numbers(self) -> dict[str, float | None]:
        """What is compared between runs, as plain numbers: a point of the reward-KL frontier."""
        judged, costs = self.judged, self.costs
        estimates = {
            "win_rate": judged and judged.win_rate,
            "length_controlled": judged and judged.length_controlled,
            "kl": costs.kl,
            "length_ratio": costs.length.change,
            "perplexity_ratio": costs.perplexity and costs.perplexity.change,
            "pair_accuracy": self.pairs and self.pairs.all.accuracy,
        }
        return {
            **{name: each.value if each else None for name, each in estimates.items()},
            "ended": costs.ended.policy,
            "repetition": costs.repetition.policy,
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `verdict.json`."""
        judged, agreement = self.judged, self.agreement
        also = self.also and {
            **self.also.to_json(),
            "agreement": agreement and agreement.to_json(),
        }
        return {
            "decision": self.decision,
            "sentence": self.sentence,
            "prompts": len(self.cases),
            "judge": judged and judged.to_json(),
            "also": also,
            "prompts_to_decide": judged and judged.prompts_to_decide,
            "costs": self.costs.to_json(),
            "facts": self.facts and asdict(self.facts),
            "pairs": self.pairs and self.pairs.to_json(),
            "alarms": list(self.alarms),
            "settings": self.settings,
        }


def _won(verdict: Verdict) -> str:
    judged = verdict.judged
    if judged is None:
        return f"nobody compared the answers to {len(verdict.cases)} held-out prompts"
    trust, rate = judged.trust, judged.win_rate
    if trust.unable:
        return f"judge {judged.judge} cannot judge, since {trust.unable}"
    if rate is None:
        return f"judge {judged.judge} could judge none of {len(verdict.cases)} prompts"
    if not trust.can_judge:
        return (
            f"judge {judged.judge} cannot judge: it is {_accuracy(judged)}, no better than a coin"
        )
    known = f" ({_accuracy(judged)})" if trust.accuracy else ""
    text = f"won {rate.percent()} of {rate.n} held-out prompts by judge {judged.judge}{known}"
    controlled = judged.length_controlled
    if controlled is not None and (rate.low > 0.5) != (controlled.low > 0.5):
        text += f", {controlled.percent()} at equal length"
    needed = judged.prompts_to_decide
    if judged.decision == CANNOT_TELL and needed:
        text += f"; a difference of this size would take {needed:,} prompts"
    return text + _checked(judged, verdict)


def _checked(judged: Judged, verdict: Verdict) -> str:
    """What the second judge says, where it does not bear the first one out."""
    also, agreement = verdict.also, verdict.agreement
    if also is None:
        return ""
    if also.win_rate is None or not also.trust.can_judge:
        return f"; judge {also.judge} cannot check it"
    if also.decision == judged.decision and (agreement is None or agreement.low > 0.5):
        return ""
    text = f"; judge {also.judge} says {also.decision} ({also.win_rate.percent()})"
    if agreement is None:
        return f"{text}, and no prompt is decided by both"
    return f"{text}, and agrees on {agreement.percent()} of {agreement.n} prompts decided by both"


def _accuracy(judged: Judged) -> str:
    accuracy = judged.trust.accuracy
    assert accuracy is not None
    return f"right on {accuracy.percent()} of {accuracy.n} held-out pairs"


def _costs(verdict: Verdict) -> Iterator[str]:
    costs, facts = verdict.costs, verdict.facts
    yield f"KL {costs.kl.value:.2g} nats an answer"
    change = round(100 * (costs.length.change.value - 1))
    longer = f"{abs(change)}% {'longer' if change > 0 else 'shorter'}"
    yield f"answers {longer if change else 'as long'}"
    if costs.ended.policy < 0.5:
        limit = verdict.settings["max_new_tokens"]
        yield f"{1 - costs.ended.policy:.0%} of them cut at {limit} tokens"
    if facts is not None:
        yield f"{facts.lost} of {facts.known} facts lost"
    if costs.perplexity is not None:
        yield f"text perplexity {100 * (costs.perplexity.change.value - 1):+.1f}%"
