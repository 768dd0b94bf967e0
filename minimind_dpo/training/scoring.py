"""Score a batch with a model that attends the way the batch is laid out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel

from minimind_dpo.batch import PairLogps, PreferenceBatch
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.objective.logps import AuxLoss, sequence_logps


def score(
    model: PreTrainedModel,
    batch: PreferenceBatch,
    *,
    statistics: bool = False,
    aux_loss: AuxLoss | None = None,
) -> PairLogps:
    """`sequence_logps`, after switching the model's attention to what the batch needs.

    A packed batch run with a model's plain attention would let every pair see the others, without
    an error; so no caller is trusted to have switched it.
    """
    use_planned_attention(model, batch.plan is not None)
    return sequence_logps(model, batch, statistics=statistics, aux_loss=aux_loss)


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode for a while, then the mode that was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
