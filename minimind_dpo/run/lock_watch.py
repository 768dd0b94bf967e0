"""Looks after the lock of a run's folder while the run trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import Callback

from minimind_dpo.run.lock import FolderLock


class LockWatch(Callback):
    """Keeps a second run out of the folder where somebody has deleted the lock's file.

    Args:
        lock: Of the first rank; on the others it is held by nobody, and nothing is done.
    """

    def __init__(self, lock: FolderLock) -> None:
        self.lock = lock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """A look at one file.

        Raises:
            ConfigError: A second run writes into the folder.
        """
        self.lock.keep()
