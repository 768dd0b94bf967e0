"""The frozen reference: run beside the policy, or once ahead of training, or not at all.

A scorer is never a submodule of `DPOModule`: the reference is not trained, not saved, and not
switched to train mode. `PrecomputedReference` runs once over the pairs that the run will visit,
each rank over its share, and stores float32 log-probs per scored token beside the data; every
epoch and every run with the same data and reference reads them back.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minimind_dpo.batch import PairLogps, PreferenceBatch, TokenizedPair
from minimind_dpo.data.collate import Collator
from minimind_dpo.objective.logps import sequence_logps


class ReferenceScorer(Protocol):
    """Gives the reference's log-probs of a batch, or None where the loss needs none."""

    def score(self, batch: PreferenceBatch) -> PairLogps | None:
        """Log-probs of the batch's scored tokens under the reference, without gradient."""
        ...


class NoReference:
    """For losses that have no reference (SimPO, ORPO, CPO)."""

    def score(self, batch: PreferenceBatch) -> None:
        """None."""
        return


class OnlineReference:
    """Runs a frozen model on every batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def score(self, batch: PreferenceBatch) -> PairLogps:
        """Run the reference on the batch, in the precision context of the caller."""
        if self.model.device != batch.input_ids.device:
            self.model.to(batch.input_ids.device)
        with torch.no_grad():
            return sequence_logps(self.model, batch)


class PrecomputedReference:
    """Reads log-probs that were computed ahead and travel with the batch."""

    def score(self, batch: PreferenceBatch) -> PairLogps:
        """The batch's own reference log-probs.

        Raises:
            RuntimeError: The batch carries none.
        """
        if batch.reference_token_logps is None:
            raise RuntimeError(
                "the batch carries no reference log-probs: compute them ahead "
                "(PreferenceDataModule.attach_reference) or use reference.mode=online"
            )
        return PairLogps(batch.reference_token_logps, batch.sequence_id, batch.lengths)


def weights_fingerprint(model: PreTrainedModel) -> str:
    """sha256 over a model's parameters and buffers: names, shapes, dtypes and bytes."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def score_pairs(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    collate: Collator,
    *,
    device: torch.device,
    precision_context: Callable[[], contextlib.AbstractContextManager[object]],
) -> list[np.ndarray]:
    """Reference log-probs of some pairs: float32 (chosen + rejected length,) each, chosen first."""
    batch = collate(pairs).to(device)
    with torch.inference_mode(), precision_context():
        logps = sequence_logps(model, batch).token_logps.float().cpu().numpy()
    chosen = np.cumsum([0, *(len(pair.chosen_ids) for pair in pairs)])
    rejected = chosen[-1] + np.cumsum([0, *(len(pair.rejected_ids) for pair in pairs)])
    return [
        np.concatenate([logps[chosen[i] : chosen[i + 1]], logps[rejected[i] : rejected[i + 1]]])
        for i in range(len(pairs))
    ]


def token_batches(rows: np.ndarray, tokens: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of at most `budget` tokens, similar lengths together.

    Args:
        rows: int (n,) rows of a store.
        tokens: int (n,) tokens of each.
        budget: Most tokens of a batch; a longer single pair goes alone.
    """
    order = np.argsort(tokens, kind="stable")[::-1]
    start = 0
    load = 0
    for i, position in enumerate(order):
        if i > start and load + tokens[position] > budget:
            yield rows[order[start:i]]
            start, load = i, 0
        load += int(tokens[position])
    if start < len(order):
        yield rows[order[start:]]


def frozen_eval(model: PreTrainedModel) -> contextlib.AbstractContextManager[None]:
    """Eval mode for a while, then the mode that was."""

    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        training = model.training
        model.eval()
        try:
            yield
        finally:
            model.train(training)

    return manager()


def same_weights(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    """Whether two models hold equal tensors under equal names."""
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], _like(b[k], a[k])) for k in a)


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return tensor.to(device=other.device, dtype=other.dtype)
