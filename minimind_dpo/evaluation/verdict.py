"""The verdict on a policy: did it get better, by how much, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judged import DECISIONS, NOT_JUDGED, Judged
from minimind_dpo.evaluation.measures import Costs, Facts
from minimind_dpo.evaluation.pair_measures import PairMeasures
from minimind_dpo.evaluation.statistics import Estimate, share_interval
from minimind_dpo.evaluation.text import Text, chinese, join


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
    def sentence(self) -> Text:
        """Decision, win rate and judge; then what it costs."""
        decision, won = DECISIONS[self.decision], _won(self)
        costs = join(_costs(self), ", ", "，")
        return Text(
            f"{decision}: {won}; cost: {costs}", f"{decision.zh}：{won.zh}；代价：{costs.zh}"
        )

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
            "agreement": agreement and asdict(agreement),
        }
        return {
            "decision": self.decision,
            "sentence": self.sentence,
            "sentence_zh": self.sentence.zh,
            "prompts": len(self.cases),
            "judge": judged and judged.to_json(),
            "also": also,
            "prompts_to_decide": judged and judged.prompts_to_decide,
            "costs": asdict(self.costs),
            "facts": self.facts and asdict(self.facts),
            "pairs": self.pairs and asdict(self.pairs),
            "alarms": list(self.alarms),
            "alarms_zh": [chinese(alarm) for alarm in self.alarms],
            "settings": self.settings,
        }


def _won(verdict: Verdict) -> Text:
    judged, prompts = verdict.judged, len(verdict.cases)
    if judged is None:
        return Text(
            f"nobody compared the answers to {prompts} held-out prompts",
            f"{prompts} 个留出提示的回答没有经过比较",
        )
    trust, judge, right = judged.trust, judged.judge, _accuracy(judged)
    if judged.win_rate is not None:
        return join(_rates(verdict, judged, judged.win_rate, right))
    if trust.unable:
        return Text(
            f"judge {judge} cannot judge, since {trust.unable}",
            f"裁判 {judge} 无法评判，因为{chinese(trust.unable)}",
        )
    if not trust.can_judge:
        return Text(
            f"judge {judge} cannot judge: it is {right}, no better than a coin",
            f"裁判 {judge} 无法评判：{right.zh}，不比抛硬币更准",
        )
    return Text(
        f"judge {judge} could judge none of {prompts} prompts",
        f"裁判 {judge} 对 {prompts} 个提示都没能给出判断",
    )


def _rates(verdict: Verdict, judged: Judged, rate: Estimate, right: Text) -> Iterator[Text]:
    share, judge = rate.percent(), judged.judge
    yield Text(
        f"won {share} of {rate.n} held-out prompts by judge {judge}",
        f"{rate.n} 个留出提示中胜率 {share}，裁判 {judge}",
    )
    if right:
        yield Text(f" ({right})", f"（{right.zh}）")
    controlled, needed = judged.length_controlled, judged.prompts_to_decide
    if controlled is not None and (rate.low > 0.5) != (controlled.low > 0.5):
        yield Text(f", {controlled.percent()} at equal length", f"，等长时 {controlled.percent()}")
    if needed:
        yield Text(
            f"; a difference of this size would take {needed:,} prompts",
            f"；这样大的差别需要 {needed:,} 个提示才能判断",
        )
    if verdict.also is not None:
        yield from _checked(judged, verdict.also, verdict.agreement)


def _checked(judged: Judged, also: Judged, agreement: Estimate | None) -> Iterator[Text]:
    """What the second judge says, where it does not bear the first one out."""
    judge, rate = also.judge, also.win_rate
    if rate is None:
        yield Text(f"; judge {judge} cannot check it", f"；裁判 {judge} 无法核对")
        return
    if also.decision == judged.decision and (agreement is None or agreement.low > 0.5):
        return
    decision = DECISIONS[also.decision]
    yield Text(
        f"; judge {judge} says {decision} ({rate.percent()})",
        f"；裁判 {judge} 的结论是{decision.zh}（{rate.percent()}）",
    )
    if agreement is None:
        yield Text(", and no prompt is decided by both", "，没有一个提示是两者都分出胜负的")
    else:
        share, n = agreement.percent(), agreement.n
        yield Text(
            f", and agrees on {share} of {n} prompts decided by both",
            f"，两者都分出胜负的 {n} 个提示中一致的占 {share}",
        )


def _accuracy(judged: Judged) -> Text:
    """How often it is right on held-out pairs; empty where that is not known."""
    accuracy = judged.trust.accuracy
    if accuracy is None:
        return Text("", "")
    share, n = accuracy.percent(), accuracy.n
    return Text(f"right on {share} of {n} held-out pairs", f"在 {n} 个留出偏好对上判对 {share}")


def _costs(verdict: Verdict) -> Iterator[Text]:
    costs, facts = verdict.costs, verdict.facts
    kl = f"{costs.kl.value:.2g}"
    yield Text(f"KL {kl} nats an answer", f"每个回答 KL {kl} 奈特")
    change = round(100 * (costs.length.change.value - 1))
    if not change:
        yield Text("answers as long", "回答一样长")
    else:
        longer, zh = ("longer", "长") if change > 0 else ("shorter", "短")
        yield Text(f"answers {abs(change)}% {longer}", f"回答{zh} {abs(change)}%")
    if costs.ended.policy < 0.5:
        limit, cut = verdict.settings["max_new_tokens"], f"{1 - costs.ended.policy:.0%}"
        yield Text(f"{cut} of them cut at {limit} tokens", f"其中 {cut} 在 {limit} 个词元处被截断")
    if facts is not None:
        lost, known = facts.lost, facts.known
        yield Text(f"{lost} of {known} facts lost", f"{known} 个事实丢失 {lost} 个")
    if costs.perplexity is not None:
        more = f"{100 * (costs.perplexity.change.value - 1):+.1f}%"
        yield Text(f"text perplexity {more}", f"文本困惑度 {more}")
