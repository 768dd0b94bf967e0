"""What holds for the whole process of a run: messages, seeds, threads, memory, matrix products."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

import lightning as L
import torch

from minimind_dpo import launch
from minimind_dpo.config.schema import Config
from minimind_dpo.kernels.cpu_matmul import choose_library
from minimind_dpo.kernels.keep_memory import keep_freed_memory


def prepare_process(config: Config, messages: TextIO | None = None) -> None:
    """Set all of it, before anything is read.

    Args:
        config: The configuration.
        messages: Where they go; standard output where None.
    """
    _quiet(config.log_level, messages or sys.stdout)
    L.seed_everything(config.seed, workers=False, verbose=False)
    if config.trainer.accelerator in ("cpu", "auto") and not torch.cuda.is_available():
        keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.model.matmul_precision)
    choose_library(config.model.matmul_library)


def _quiet(level: str, messages: TextIO) -> None:
    """Our own messages at the asked level on the first rank; Lightning's only where they matter."""
    shown = getattr(logging, level.upper()) if launch.rank() == 0 else logging.ERROR
    logging.basicConfig(format="%(message)s", stream=messages, level=logging.WARNING, force=True)
    logging.getLogger("minimind_dpo").setLevel(shown)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(max(shown, logging.WARNING))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    # The module reduces its sums over ranks itself, exactly, before it logs their means.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", ".*functional.all_gather is deprecated.*")
