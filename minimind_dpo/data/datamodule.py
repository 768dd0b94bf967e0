"""`PreferenceDataModule`: owns the pairwise data set, from files to micro-batches.

prepare_data   one process: files -> token store on disk
setup          every rank: open the store, split, plan the optimizer steps
loaders        micro-batches of this rank, laid out by the collator
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.data.batches.division import Division, too_few
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.batches.loader import LaidOutPairs, PlannedLoader
from minimind_dpo.data.batches.split import split_indices
from minimind_dpo.data.batches.step_plan import StepSampler, StepShape, carry_over
from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.store.reference_logps import ReferenceCache
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.options.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)


class PreferenceDataModule(L.LightningDataModule):
    """Preference pairs for `DPOModule`.

    Args:
        tokenizer: The policy's.
        options: Files, lengths, layout, batches: the keys `data.*`.
        seed: Of the order of the training pairs.
        progress: Show progress bars.

    Attributes:
        tokenizer: Turns pairs into tokens; its rules are part of the cache's key.
        batch_size: Pairs per device per micro-batch, on average over an optimizer step.
        train_store: Tokenised pairs that `train` names; val pairs are in it where they were split
            off.
        val_store: Tokenised pairs that validation reads, or None.
        train_rows: Rows of `train_store` to train on.
        val_rows: Rows of `val_store` to validate on.

    Raises:
        ConfigError: An option, the tokenizer or its chat template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        options: DataOptions,
        *,
        seed: int = 42,
        progress: bool = True,
    ) -> None:
        super().__init__()
        self.tokenizer = PairTokenizer(tokenizer, options)
        self.options = options
        self.batch_size = options.pairs
        self.seed = seed
        self.progress = progress
        self.collate = Collator(
            options.layout,
            pad_id=self.tokenizer.pad_id,
            max_length=options.max_length,
            pad_to_max_length=options.pad_to_max_length,
        )
        self.train_store: TokenStore | None = None
        self.val_store: TokenStore | None = None
        self.train_rows = self.val_rows = np.zeros(0, dtype=np.int64)
        self._position: dict[str, int] = {}

    def prepare_data(self) -> None:
        """Tokenise into the cache, or find it there; one process per machine.

        Raises:
            DataError: Bad lines, with file and line number each.
        """
        if self.train_store is None:
            self.train_store = self._store(self.options.train)
        if self.val_store is None and self.options.val:
            self.val_store = self._store(self.options.val)
        self._divide(self.train_store)

    def setup(self, stage: str) -> None:
        """Open the stores that `prepare_data` wrote."""
        self.prepare_data()

    def _divide(self, store: TokenStore) -> None:
        """Decide which rows are trained on and which validated."""
        if self.options.val or self.options.val_fraction == 0:
            self.train_rows = np.arange(len(store))
            self.val_rows = np.arange(len(self.val_store or ()))
        else:
            self.train_rows, self.val_rows = split_indices(store, self.options.val_fraction)
            self.val_store = store
        if len(self.train_rows) == 0:
            why = "no pair is left to train on: see the data report for what was dropped and why"
            raise DataError([Problem(", ".join(map(str, self.options.train)), why)])

    def train_dataloader(self) -> DataLoader[PreferenceBatch]:
        """Micro-batches of this rank, whole optimizer steps planned ahead."""
        sampler = self.train_sampler()
        if self.trainer is not None:
            # NOTE: Lightning makes the first iterator before it calls set_epoch.
            sampler.set_epoch(self._position.get("epoch", self.trainer.current_epoch))
        sampler.start_at(self._position.get("micro_batches", 0))
        self._position = {}
        assert self.train_store is not None
        return self._dataloader(self.train_store, sampler)

    def val_dataloader(self) -> DataLoader[PreferenceBatch] | list[Any]:
        """Validation batches of this rank: every pair once, none twice."""
        if self.val_store is None or len(self.val_rows) == 0:
            return []
        return self._dataloader(self.val_store, self.val_sampler())

    def state_dict(self) -> dict[str, int]:
        """Where training stands: micro-batches of the running epoch, and how they are cut."""
        if self.trainer is None:
            return {}
        sampler = self.train_sampler()
        return {
            "epoch": self.trainer.current_epoch,
            "micro_batches": self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
            "epoch_batches": len(sampler),
            **asdict(sampler.shape),
        }

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the last pair that was trained on, on any number of devices."""
        if not state_dict:
            return
        sampler = self.train_sampler()
        now = {**asdict(sampler.shape), "epoch_batches": len(sampler)}
        position, exact = carry_over(state_dict["micro_batches"], state_dict, now)
        if _spread(state_dict) != _spread(now):
            where = "at the exact pair" if exact else "up to one optimizer step earlier"
            _log.warning(
                f"a step was {_spread(state_dict)} and is {_spread(now)}: resuming {where}"
            )
        self._position = {"epoch": state_dict["epoch"], "micro_batches": position}

    def attach_reference(self, caches: Sequence[ReferenceCache]) -> None:
        """Let batches carry the reference's log-probs, from one cache per store of `stores`."""
        attached = {id(s): s.with_reference(c) for s, c in zip(self.stores, caches, strict=True)}
        self.train_store = attached.get(id(self.train_store), self.train_store)
        self.val_store = attached.get(id(self.val_store), self.val_store)

    @property
    def stores(self) -> list[TokenStore]:
        """The distinct stores that this run reads."""
        stores = [s for s in (self.train_store, self.val_store) if s is not None]
        return stores[:1] if len(stores) == 2 and stores[0] is stores[1] else stores

    def source(self, row: int) -> str:
        """Where a training pair was read, `dpo.jsonl:17`."""
        return f"row {row}" if self.train_store is None else self.train_store.source(row)

    def rows_to_score(self, epochs: int | None, steps: int | None = None) -> list[np.ndarray]:
        """Rows that training and validation visit, one array per store of `stores`.

        Args:
            epochs: How many epochs training may take; None for no bound.
            steps: How many optimizer steps it may take; None for no bound.
        """
        train, val = self.train_sampler().visited(epochs, steps), self.validated_rows()
        return [np.union1d(train, val)] if len(self.stores) == 1 else [train, val]

    def validated_rows(self) -> np.ndarray:
        """Sorted rows of `val_store` that validation visits; none where it is off."""
        off = self.trainer is not None and self.trainer.limit_val_batches == 0
        return self.val_rows[:0] if off or not len(self.val_rows) else self.val_sampler().visited(1)

    def some_prompts(self, count: int) -> list[list[int]]:
        """Token ids of at most `count` different prompts, spread evenly, held out where any are."""
        held_out = self.val_store is not None and len(self.val_rows) > 0
        store = self.val_store if held_out else self.train_store
        rows = self.val_rows if held_out else self.train_rows
        assert store is not None
        # By hash, since several pairs may have the same prompt.
        first = np.sort(np.unique(store.prompt_hash[rows], return_index=True)[1])
        number = min(count, len(first))
        spread = rows[first[np.arange(number) * len(first) // max(number, 1)]]
        return [store.prompt_ids(row).tolist() for row in spread.tolist()]

    def train_sampler(self, division: Division | None = None) -> StepSampler:
        """The plan of training on a rank.

        Args:
            division: As the trainer's where None.

        Raises:
            DataError: It has no optimizer step.
        """
        division = division or Division.of(self.trainer)
        sampler = self._sampler(
            self.train_store,
            self.train_rows,
            division,
            division.accumulate,
            seed=self.seed,
            shuffle=self.options.shuffle,
            drop_last=self.options.drop_last,
        )
        if not sampler.whole:
            raise DataError([too_few(sampler)])
        sampler.limit = division.limit(sampler.whole, "train")
        return sampler

    def most_tokens(self, batch_size: int, division: Division) -> int:
        """Tokens of the largest micro-batch of the first epoch, padding included.

        Args:
            batch_size: Pairs of a micro-batch, on average over a step.
            division: How the trainer would divide the data.
        """
        assert self.train_store is not None
        lengths, collate = self.train_store.lengths[self.train_rows], self.collate
        if collate.layout == "padded":
            widest = int((lengths[:, 0] + lengths[:, 1:].max(axis=1)).max()) - 1
            return 2 * batch_size * (collate.max_length if collate.pad_to_max_length else widest)
        sampler = StepSampler(
            self.train_rows,
            collate.tokens(lengths),
            StepShape(batch_size, division.accumulate, division.world_size),
            seed=self.seed,
            shuffle=self.options.shuffle,
        )
        return sampler.largest()

    def val_sampler(self, division: Division | None = None) -> StepSampler:
        """The plan of validation on a rank; the last batches of some ranks may be empty.

        Raises:
            DataError: `limit_val_batches` leaves no batch.
        """
        division = division or Division.of(self.trainer)
        sampler = self._sampler(self.val_store, self.val_rows, division, 1, shuffle=False)
        sampler.limit = division.limit(sampler.whole, "val")
        return sampler

    def _sampler(
        self,
        store: TokenStore | None,
        rows: np.ndarray,
        division: Division,
        accumulate: int,
        **order: Any,
    ) -> StepSampler:
        assert store is not None
        return StepSampler(
            rows,
            self.collate.tokens(store.lengths[rows]),
            StepShape(self.batch_size, accumulate, division.world_size),
            chosen_lengths=store.lengths[rows, 1],
            rank=division.rank,
            **order,
        )

    def _store(self, files: list[str]) -> TokenStore:
        return prepare_store(files, self.tokenizer, self.options, progress=self.progress)

    def _dataloader(self, store: TokenStore, sampler: StepSampler) -> DataLoader[PreferenceBatch]:
        pin = self.options.pin_memory
        if pin is None:
            pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        # Asked for on a machine without a GPU it does nothing but make torch warn.
        pin = pin and torch.cuda.is_available()
        workers = self.options.num_workers
        return PlannedLoader(
            LaidOutPairs(store, self.collate),
            sampler,
            num_workers=workers,
            pin_memory=pin,
            persistent_workers=False,
            prefetch_factor=4 if workers else None,
            seed=self.seed,
        )


def _spread(shape: Mapping[str, int]) -> str:
    return (
        f"{shape['batch_size']} pairs x {shape['accumulate']} micro-batches x "
        f"{shape['world_size']} devices"
    )
