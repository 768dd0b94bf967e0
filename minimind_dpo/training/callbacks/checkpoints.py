"""Which training states are kept: the newest, and the best by a monitored metric."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lightning.pytorch.callbacks import Callback, ModelCheckpoint


class CheckpointOptions(Protocol):
    """What `make_checkpoints` reads of the configuration."""

    every_n_steps: int
    save_top_k: int
    monitor: str
    mode: str
    save_last: bool


def make_checkpoints(options: CheckpointOptions, folder: Path) -> list[Callback]:
    """Lightning's checkpoint callbacks for one run folder."""
    callbacks: list[Callback] = []
    if options.save_last:
        callbacks.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="last",
                every_n_train_steps=options.every_n_steps or None,
                save_top_k=1,
                save_on_train_epoch_end=None if options.every_n_steps else True,
                enable_version_counter=False,
            )
        )
    if options.save_top_k:
        callbacks.append(
            ModelCheckpoint(
                dirpath=folder,
                filename="best-{step}",
                monitor=options.monitor,
                mode=options.mode,
                save_top_k=options.save_top_k,
                save_on_train_epoch_end=False,
            )
        )
    return callbacks
