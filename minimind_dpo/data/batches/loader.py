"""Micro-batches from the token store, laid out in loading processes or in this one."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.batches.step_plan import MicroBatch, StepSampler
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.launch import STOP_SIGNALS


class LaidOutPairs(Dataset[PreferenceBatch]):
    """Micro-batches by what the sampler asks for; no randomness, so workers change nothing."""

    def __init__(self, store: TokenStore, collate: Collator) -> None:
        self.store = store
        self.collate = collate

    def __getitem__(self, micro_batch: MicroBatch) -> PreferenceBatch:
        pairs = [self.store[row] for row in micro_batch.rows]
        return self.collate(pairs, micro_batch.window)


class PlannedLoader(DataLoader[PreferenceBatch]):
    """Tells Lightning that a run can go on in the middle of an epoch.

    The position itself is the data module's: it is the same for every rank, whatever their number.
    The length is that of the whole epoch: Lightning takes `limit_train_batches` off it by itself.

    Args:
        data: Micro-batches.
        sampler: The plan, which is cut at the same limit.
        seed: Of numbers that making an iterator draws: from the global generator, a run that is
            resumed at an epoch's edge would draw other dropout masks.
        num_workers: Loading processes, which end with the process that made them.
        options: Keywords of DataLoader.
    """

    def __init__(
        self,
        data: LaidOutPairs,
        sampler: StepSampler,
        *,
        seed: int = 0,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        watch = functools.partial(_end_only_with, os.getpid()) if num_workers else None
        self._whole = sampler.whole
        super().__init__(
            data,
            sampler=sampler,
            batch_size=None,
            num_workers=num_workers,
            worker_init_fn=watch,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    def __len__(self) -> int:
        return self._whole

    def __iter__(self) -> Any:
        """Start the loading processes, if any, with the signals blocked that end a run."""
        if not self.num_workers or not hasattr(signal, "sigtimedwait"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""


def _end_only_with(parent: int, worker: int) -> None:
    """Let a loading process end with the process that it loads for, and by no signal to its group.

    A scheduler's SIGTERM reaches all processes of a run, which still needs their micro-batches to
    end its step. The parent's own is obeyed: torch ends a process by it that does not answer.
    torch's own watch asks for its parent's number after it has started: a parent that is killed
    before leaves workers that wait for ever.
    """

    def look() -> None:
        while os.getppid() == parent:
            if not hasattr(signal, "sigtimedwait"):  # macOS, Windows
                time.sleep(1.0)
            elif (sent := signal.sigtimedwait(STOP_SIGNALS, 1.0)) and sent.si_pid == parent:
                break
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="watch-parent").start()
