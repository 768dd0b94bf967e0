"""How policy and reference rank held-out pairs: accuracy and margin, and where they come from.

    m = log pi(chosen) / ref(chosen) - log pi(rejected) / ref(rejected)

is the margin over beta: the gap of implicit rewards is beta m, whatever beta is, so runs compare.
Accuracy is the share of pairs with m > 0, ties half. It says how pairs are ranked, not how the
policy answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.evaluation.form import language_of
from minimind_dpo.evaluation.scoring import prompt_groups
from minimind_dpo.evaluation.statistics import Estimate, bootstrap

MOST_SOURCES: Final = 12
"""Files whose pairs are told apart; a glob of a thousand shards is no table."""

_LONGER: Final = {1: "chosen longer", 0: "equal", -1: "rejected longer"}


@dataclass(frozen=True, slots=True)
class Ranking:
    """How some pairs are ranked.

    Attributes:
        accuracy: Share of pairs with m > 0, ties half.
        margin: Mean of m in nats.
    """

    accuracy: Estimate
    margin: Estimate

    @classmethod
    def of(cls, margin: np.ndarray, prompt: np.ndarray) -> Ranking:
        """Of margins, float (n,), with the prompt of each, int (n,)."""
        right = (1.0 + np.sign(margin)) / 2.0
        accuracy = bootstrap([right], groups=prompt, share=True)
        return cls(accuracy, bootstrap([margin], groups=prompt))


@dataclass(frozen=True, slots=True)
class PairMeasures:
    """What held-out pairs tell.

    Attributes:
        all: Of every pair.
        equal_length: With length regressed out, m = a + c tanh(d / s) + rest, where d is by how
            many tokens the chosen answer is longer and s the root mean square of d: a, and the
            accuracy of m - c tanh(d / s).
        by: The same for parts: `language` (zh, en, other), `source` (file), `length` (which
            answer is the longer one).
        chosen: log pi(chosen) / ref(chosen) in nats an answer.
    """

    all: Ranking
    equal_length: Ranking
    by: dict[str, dict[str, Ranking]]
    chosen: Estimate


def measure_pairs(
    pairs: Sequence[TokenizedPair],
    policy: np.ndarray,
    reference: np.ndarray,
    decode: Callable[[Sequence[int]], str],
) -> PairMeasures:
    """Put the log-likelihoods of held-out pairs together.

    Args:
        pairs: n >= 1 pairs.
        policy: float (n, 2), nats, of chosen and rejected under the policy.
        reference: float (n, 2), under the reference.
        decode: Token ids to text without special tokens.
    """
    ratios = policy - reference
    margin = ratios[:, 0] - ratios[:, 1]
    prompt = prompt_groups(pairs)
    longer = np.array([len(pair.chosen_ids) - len(pair.rejected_ids) for pair in pairs])
    labels = {
        "language": [_language(pair, decode) for pair in pairs],
        "source": [pair.source.rpartition(":")[0] or pair.source for pair in pairs],
        "length": [_LONGER[int(np.sign(d))] for d in longer],
    }
    by = {
        kind: _parts(np.array(names), margin, prompt)
        for kind, names in labels.items()
        if len(set(names)) <= MOST_SOURCES
    }
    return PairMeasures(
        all=Ranking.of(margin, prompt),
        equal_length=_at_equal_length(margin, longer, prompt),
        by=by,
        chosen=bootstrap([ratios[:, 0]], groups=prompt),
    )


def _parts(names: np.ndarray, margin: np.ndarray, prompt: np.ndarray) -> dict[str, Ranking]:
    """By name, the most frequent first."""
    kinds, counts = np.unique(names, return_counts=True)
    ordered = kinds[np.argsort(-counts, kind="stable")]
    return {str(kind): Ranking.of(margin[names == kind], prompt[names == kind]) for kind in ordered}


def _at_equal_length(margin: np.ndarray, longer: np.ndarray, prompt: np.ndarray) -> Ranking:
    scale = float(np.sqrt(np.square(longer).mean())) or 1.0
    x = np.tanh(longer / scale)

    def slope(m: Any, x: Any, xx: Any, xm: Any) -> Any:
        return (xm - x * m) / np.maximum(xx - x * x, 1e-9)

    columns = [margin, x, x * x, x * margin]
    margin_there = bootstrap(columns, lambda *c: c[0] - slope(*c) * c[1], groups=prompt)
    rest = margin - float(slope(*(column.mean() for column in columns))) * x
    right = (1.0 + np.sign(rest)) / 2.0
    return Ranking(bootstrap([right], groups=prompt, share=True), margin_there)


def _language(pair: TokenizedPair, decode: Callable[[Sequence[int]], str]) -> str:
    return language_of(decode([*pair.prompt_ids.tolist(), *pair.chosen_ids.tolist()]))
