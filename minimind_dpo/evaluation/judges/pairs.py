"""The judge `pairs`: the preference that the run's own training pairs show.

Bradley-Terry on the frozen reference's hidden states, averaged over the answer, of two layers: the
one after a quarter of them and the one in the middle, above which nothing is run. Pairs are cut to
what is judged, the end of a prompt and the beginning of an answer. It needs no set-up and no second
model, and says how often it is right on held-out pairs; where that is no better than a coin, it
says that it cannot judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.answers import Answer, Bar, Lend, Prompt
from minimind_dpo.evaluation.judges.bradley_terry import BradleyTerry, fit
from minimind_dpo.evaluation.judges.judge import JudgeError, Trust
from minimind_dpo.evaluation.scoring import frozen, pair_batches, prompt_groups
from minimind_dpo.evaluation.statistics import share_interval
from minimind_dpo.evaluation.text import Text
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.objective.logps import predictor_states

FEWEST_PAIRS: Final = 8
"""Training pairs below which nothing is fitted."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What the judge is fitted and tested on.

    Attributes:
        reference: The frozen reference.
        fit_pairs: Training pairs.
        test_pairs: Held-out pairs.
        collate: Lays pairs out for the reference.
        batch_tokens: Most tokens of a forward pass.
        longest: Tokens of the longest answer that is judged; of a longer one the beginning is
            read, and of a longer prompt the end.
        bar: Makes progress bars.
    """

    reference: Lend
    fit_pairs: Sequence[TokenizedPair]
    test_pairs: Sequence[TokenizedPair]
    collate: Collator
    batch_tokens: int
    longest: int
    bar: Bar


class PairsJudge:
    """Fitted when it is first asked for anything.

    Args:
        ground: What it is fitted and tested on.
    """

    name = "pairs"

    def __init__(self, ground: Ground) -> None:
        self.ground = ground

    @property
    def tokens_ahead(self) -> int:
        """All of the pairs that it is fitted and tested on."""
        pairs = self._cut([*self.ground.fit_pairs, *self.ground.test_pairs])
        return sum(len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)

    @cached_property
    def trust(self) -> Trust:
        """Its accuracy on held-out pairs."""
        pairs = self.ground.test_pairs
        words = self._words()
        if self._model is None:
            count = len(self.ground.fit_pairs)
            en, zh = "training pairs are too few to fit it on", "个训练偏好对太少，无法拟合"
            return Trust(words, unable=Text(f"{count} {en}", f"{count} {zh}"))
        if not pairs:
            en, zh = "there is no held-out pair to test it on", "没有留出偏好对可以检验它"
            return Trust(words, unable=Text(en, zh))
        with self.ground.bar("Testing the judge", len(pairs), "pairs") as advance:
            score = self._model.prefer(*self._differences(pairs, advance))
        return Trust(words, share_interval((1.0 + np.sign(score)) / 2.0))

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1, -1, or 0 for answers that are the same: float64 (prompts,)."""
        if self._model is None:
            return np.full(len(prompts), np.nan)
        pairs = [
            TokenizedPair(prompt.ids, a.ids, b.ids, index=0)
            for prompt, a, b in zip(prompts, first, second, strict=True)
        ]
        preferred = np.sign(self._model.prefer(*self._differences(pairs)))
        same = [np.array_equal(a.ids, b.ids) for a, b in zip(first, second, strict=True)]
        return np.where(same, 0.0, preferred)

    @cached_property
    def _model(self) -> BradleyTerry | None:
        pairs = self.ground.fit_pairs
        if len(pairs) < FEWEST_PAIRS:
            return None
        with self.ground.bar("Fitting the judge", len(pairs), "pairs") as advance:
            difference, length = self._differences(pairs, advance)
        return fit(difference, length, prompt_groups(pairs))

    def _differences(
        self, pairs: Sequence[TokenizedPair], advance: Any = lambda count: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features of the first answer less those of the second (n, F), and log length ratio."""
        pairs = self._cut(pairs)
        rows: list[np.ndarray] = [np.zeros(0)] * len(pairs)
        ground = self.ground
        with ground.reference() as model, frozen(model):
            for places, batch in pair_batches(pairs, ground.collate, ground.batch_tokens):
                means = mean_states(model, batch.to(model.device)).double().cpu().numpy()
                for place, first, second in zip(places, *np.split(means, 2), strict=True):
                    rows[place] = first - second
                advance(len(places))
        lengths = np.array([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs])
        return np.stack(rows), np.log(lengths[:, 0] / lengths[:, 1])

    def _words(self) -> Text:
        """What it goes by; where some training pairs are longer than what is judged, that too."""
        pairs, most = self.ground.fit_pairs, self.ground.longest
        en, zh = (
            "the preference that the training pairs show, length aside",
            "训练偏好对的偏好，不计长度",
        )
        if any(max(len(pair.chosen_ids), len(pair.rejected_ids)) > most for pair in pairs):
            en += f" and in the first {most} tokens of an answer alone"
            zh += f"，且只看回答的前 {most} 个词元"
        return Text(en, zh)

    def _cut(self, pairs: Sequence[TokenizedPair]) -> list[TokenizedPair]:
        most = self.ground.longest
        return [
            TokenizedPair(p.prompt_ids[-most:], p.chosen_ids[:most], p.rejected_ids[:most], index=0)
            for p in pairs
        ]


class _SeenError(Exception):
    """All layers that are read have been run."""


def mean_states(model: PreTrainedModel, batch: PreferenceBatch) -> Tensor:
    """Hidden states that predict each answer's tokens, averaged: (2P, F), of `read_layers`.

    Args:
        model: A `transformers` model.
        batch: P >= 1 pairs on its device.

    Raises:
        JudgeError: The model has no layers that transformers marks as such.
    """
    use_planned_attention(model, batch.plan is not None)
    outputs: list[Tensor] = []
    layers = read_layers(model)

    def keep(module: Any, arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)
        if len(outputs) == len(layers):
            raise _SeenError

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        with contextlib.suppress(_SeenError):
            predictor_states(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    states = torch.cat([layer.flatten(0, -2)[batch.predictor_index] for layer in outputs], 1)
    sums = states.new_zeros(len(batch.lengths), states.shape[1], dtype=torch.float32)
    return sums.index_add(0, batch.sequence_id, states.float()) / batch.lengths[:, None]


def read_layers(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The decoder layers at a quarter and at half of the depth; one where there is but one.

    Raises:
        JudgeError: The model has no layers that transformers marks as such.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise JudgeError(
            f"{type(model).__name__} has no decoder layers whose states could be "
            "read. Use another judge for this model"
        )
    return [layers[place] for place in sorted({len(layers) // 4, len(layers) // 2})]
