"""Prove, before training, that a model predicts the chosen answers better than chance.

A wrong tokenizer, or a field that the file cannot tell (heads, rotary base, experts per token),
loads without an error and gives wrong logits. They show in the mean log-prob of a token of the
chosen answers: a trained model is far from the uniform distribution, -ln V, and no other reading of
the same weights predicts them much better.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.evaluation.scoring import evaluating, score
from minimind_dpo.models.errors import CheckpointError

NEAR_UNIFORM: Final = 0.9
"""Share of -ln V from which a model knows no more than chance. One that knew nothing but how often
each token is used would be at about 0.8, a MiniMind after fine-tuning is at 0.3."""

BETTER: Final = 0.1
"""Nats a token by which another setting must be better to be taken for the right one. Over some
hundred tokens that is odds of e^20 and more."""

_PAIRS, _TOKENS = 8, 48


@dataclass(frozen=True, slots=True)
class Other:
    """Another reading of the same file.

    Attributes:
        settings: Overrides under `model.config` that make it.
        load: Makes the model.
    """

    settings: Mapping[str, Any]
    load: Callable[[], PreTrainedModel]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Mean log-prob of a token of the chosen answers, and of the uniform distribution, in nats."""

    mean: float
    uniform: float

    @property
    def by_chance(self) -> bool:
        """Whether the model knows no more than chance."""
        return not self.mean > NEAR_UNIFORM * self.uniform

    def __str__(self) -> str:
        return f"a chosen token {self.mean:.2f} nats on average (uniform: {self.uniform:.2f})"


def sample(store: TokenStore) -> list[TokenizedPair]:
    """A few pairs from all over the data, cut to a few dozen tokens each."""
    rows = np.unique(np.linspace(0, len(store) - 1, _PAIRS).astype(np.int64))
    return [
        replace(
            pair,
            prompt_ids=pair.prompt_ids[-_TOKENS:],
            chosen_ids=pair.chosen_ids[:_TOKENS],
            rejected_ids=pair.rejected_ids[:1],
        )
        for pair in (store[row] for row in rows.tolist())
    ]


def likelihood(model: PreTrainedModel, pairs: Sequence[TokenizedPair], layout: str) -> Likelihood:
    """Of the chosen answers of some pairs."""
    batch = Collator(layout)(pairs).to(model.device)
    # A compiled layer would be compiled for this batch alone.
    with torch.inference_mode(), evaluating(model), torch.compiler.set_stance("force_eager"):
        logps = score(model, batch).token_logps
    chosen = sum(len(pair.chosen_ids) for pair in pairs)
    vocabulary = int(model.get_input_embeddings().weight.size(0))  # type: ignore[operator]
    return Likelihood(float(logps[:chosen].mean()), -math.log(vocabulary))


def check_model(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    layout: str,
    *,
    name: str,
    open_fields: Mapping[str, Any] | None = None,
    others: Iterable[Other] = (),
) -> Likelihood:
    """Compare the likelihood of a few chosen answers with chance, and with other settings.

    Args:
        model: On any device.
        pairs: As `sample` cuts them.
        layout: In which the model may be scored.
        name: The key and value that it was loaded from, for messages.
        open_fields: Settings that nothing told, and their values.
        others: Other readings of the same file; those that do not fit it are passed over.

    Raises:
        CheckpointError: It predicts no better than chance, or another setting is much better.
    """
    own = likelihood(model, pairs, layout)
    best, reading = own, None
    for other in others:
        try:
            value = likelihood(other.load(), pairs, layout)
        except CheckpointError:  # it does not fit the file's shapes
            continue
        if value.mean > best.mean:
            best, reading = value, other
    if reading is not None and best.mean > own.mean + BETTER:
        settings = _spelled(reading.settings)
        raise CheckpointError(
            f"{name} gives {own}, but {best.mean:.2f} with {settings}, of which the file says "
            f"nothing. Set {settings}, or guard.check_model=false to keep what it is"
        )
    if own.by_chance:
        raise CheckpointError(_by_chance(name, own, open_fields or {}))
    return own


def _by_chance(name: str, own: Likelihood, open_fields: Mapping[str, Any]) -> str:
    settings = f", or the settings with {_spelled(open_fields)}" if open_fields else ""
    return (
        f"{name} gives {own}: it predicts these answers no better than chance. Its tokens may have "
        f"other meanings than the tokenizer's: name the one that it was trained with in "
        f"model.tokenizer{settings}. To train weights that know nothing yet, set "
        "guard.check_model=false"
    )


def _spelled(overrides: Mapping[str, Any]) -> str:
    """As they are written on the command line."""
    return " ".join(
        f"model.config.{name}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in overrides.items()
    )
