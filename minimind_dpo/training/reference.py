"""The frozen reference: run beside the policy, or once ahead of training, or not at all.

A scorer is never a submodule of `DPOModule`: the reference is not trained, not saved, and not
switched to train mode. `PrecomputedReference` runs once over the pairs that the run will visit,
each rank over its share, and stores float32 log-probs per scored token beside the data; every
epoch and every run with the same data and reference reads them back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import lightning as L
import numpy as np
import torch
from transformers import PreTrainedModel

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.store.reference_logps import ReferenceCache
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.evaluation.scoring import (
    BATCH_TOKENS,
    begin_scoring,
    evaluating,
    one_behind,
    token_batches,
)
from minimind_dpo.evaluation.scoring import score as score_batch
from minimind_dpo.models.lora import adapters_off
from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.training.reference_key import reference_key
from minimind_dpo.training.shown_progress import progress

_log = logging.getLogger(__name__)


class ReferenceScorer(Protocol):
    """Gives the reference's log-probs of a batch, or None where the loss needs none."""

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None:
        """Get ready; called on every rank after the data is set up, before anything runs."""
        ...

    def score(self, batch: PreferenceBatch) -> PairLogps | None:
        """Log-probs of the batch's scored tokens under the reference, without gradient."""
        ...


class NoReference:
    """For losses that have no reference (SimPO, ORPO, CPO)."""

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None:
        """Nothing to do."""

    def score(self, batch: PreferenceBatch) -> None:
        """None."""
        return


class OnlineReference:
    """Runs a frozen model on every batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None:
        """Move the reference to this rank's device."""
        torch.nn.Module.to(self.model, trainer.strategy.root_device)

    def score(self, batch: PreferenceBatch) -> PairLogps:
        """Run the reference on the batch, in the precision context of the caller."""
        with torch.no_grad():
            return score_batch(self.model, batch)


class AdapterOffReference:
    """Runs the policy itself with its low-rank adapters off: no second model in memory."""

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None:
        """Keep the policy."""
        self._policy = policy

    def score(self, batch: PreferenceBatch) -> PairLogps:
        """Run the policy's frozen weights on the batch."""
        with torch.no_grad(), evaluating(self._policy), adapters_off(self._policy):
            return score_batch(self._policy, batch)


class PrecomputedReference:
    """Runs the reference once over the run's pairs, ahead, and then reads its log-probs back.

    The pass is skipped for pairs whose log-probs are in the cache: it is keyed by data, tokenizer
    and rules (the store), and by what `reference_key` holds.

    Args:
        model: The reference, freed after the pass; None takes the policy as it starts.
        batch_tokens: Most tokens of a forward pass; None for `tokens_at_a_time`.
        progress: Show a progress bar.

    Attributes:
        fingerprint: The `reference_key`; empty before `prepare`.
        scored: Pairs that this process ran the reference on.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        *,
        batch_tokens: int | None = None,
        progress: bool = True,
    ) -> None:
        self.model = model
        self.batch_tokens = batch_tokens
        self.progress = progress
        self.fingerprint = ""
        self.scored = 0

    def prepare(self, trainer: L.Trainer, policy: PreTrainedModel) -> None:
        """Score what the cache lacks, each rank its share, and attach the cache to the data."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PreferenceDataModule):
            raise ValueError(
                "a precomputed reference scores a PreferenceDataModule's pairs: pass "
                "datamodule=PreferenceDataModule(...) to the trainer, or use OnlineReference"
            )
        if not self.fingerprint:
            # NOTE: only now, before training has moved it, is the policy its own reference.
            self._score(trainer, data, self.model or policy)
            self.model = None
        data.attach_reference([ReferenceCache(s, self.fingerprint) for s in data.stores])

    def _score(
        self, trainer: L.Trainer, data: PreferenceDataModule, model: PreTrainedModel
    ) -> None:
        self.fingerprint = reference_key(
            model,
            layout=data.collate.layout,
            precision=str(trainer.precision),
            device=trainer.strategy.root_device,
        )
        jobs = []
        # A resumed run may count its steps in another shape than the one it was begun in.
        steps = None if trainer.ckpt_path else _bound(trainer.max_steps)
        run_rows = data.rows_to_score(_bound(trainer.max_epochs), steps)
        for store, rows in zip(data.stores, run_rows, strict=True):
            cache = ReferenceCache(store, self.fingerprint)
            # NOTE: shares of all rows, not of the missing ones: another rank may be writing
            # already, and ranks that see different rows missing would leave some to nobody.
            share = rows[trainer.global_rank :: trainer.world_size]
            jobs.append((store, cache, cache.missing(share)))
        total = sum(len(rows) for _, _, rows in jobs)
        if total:
            torch.nn.Module.to(model, trainer.strategy.root_device)
        if self.progress and trainer.is_global_zero:
            _log.info(_scope(run_rows, data.stores, total, trainer.world_size))
        shown = self.progress and total > 0 and trainer.is_global_zero
        budget = self.batch_tokens or tokens_at_a_time(trainer.strategy.root_device)
        with evaluating(model), progress("Reference log-probs", total, shown=shown) as advance:
            for store, cache, rows in jobs:
                with cache:
                    for part, logps in _logps(trainer, data, model, store, rows, budget):
                        cache.write(part, logps)
                        advance(len(part))
        self.scored = total
        trainer.strategy.barrier("reference log-probs")

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


def tokens_at_a_time(device: torch.device) -> int:
    """Tokens of a forward pass without gradients: 16,384, and on CUDA what its free memory takes.

    A token takes at most 0.1 MB for logits and as much in the widest layer of a small model; three
    times that is left.
    """
    if device.type != "cuda":
        return BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(device)
    return max(4096, min(65536, free // 600_000))


def _logps(
    trainer: L.Trainer,
    data: PreferenceDataModule,
    model: PreTrainedModel,
    store: TokenStore,
    rows: np.ndarray,
    budget: int,
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Rows of each batch and their log-probs, read while the next batch is on the device."""

    def begin(part: np.ndarray) -> Callable[[], list[np.ndarray]]:
        return begin_scoring(
            model,
            [store[row] for row in part.tolist()],
            data.collate,
            device=trainer.strategy.root_device,
            precision_context=trainer.precision_plugin.forward_context,
        )

    tokens = data.collate.tokens(store.lengths[rows])
    return one_behind(token_batches(rows, tokens, budget), begin)


def _scope(
    run_rows: Sequence[np.ndarray], stores: Sequence[TokenStore], missing: int, ranks: int
) -> str:
    """Which pairs the pass is about: not all of the data, where a run visits fewer."""
    pairs, of = sum(map(len, run_rows)), sum(map(len, stores))
    scope = f"Reference log-probs of the {pairs:,} of {of:,} pairs that this run visits: "
    if ranks > 1:
        return scope + f"{missing:,} are scored now by this one of {ranks} processes"
    if missing == pairs:
        return scope + "all are scored now"
    return scope + (
        f"{missing:,} are scored now, the others are known" if missing else "all are known"
    )


def _bound(limit: int | None) -> int | None:
    """Lightning writes "no bound" as None or -1."""
    return None if limit is None or limit < 0 else limit
