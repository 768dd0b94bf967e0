"""What comes before a run's folder is made: its data, its plan, and what it goes on from."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.report import print_data_report
from minimind_dpo.objective.check_options import supports_margins
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.build import build_datamodule
from minimind_dpo.run.folder import Run, claim_run, make_folder, tell_ranks, write_config
from minimind_dpo.run.identity import check_identity
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.run.plan import RunPlan
from minimind_dpo.run.summary import finished, set_summary_aside, tell_finished
from minimind_dpo.training.agreement import decided
from minimind_dpo.training.distributed import forget_failure

console = Console()


def open_run(
    config: Config, tokenizer: PreTrainedTokenizerBase, lock: FolderLock, first: bool
) -> tuple[Run, PreferenceDataModule, RunPlan, dict[str, Any], dict[str, Any] | None]:
    """Read the data, and only when it is sound and fits what is resumed, make the run's folder.

    Returns:
        The run, its data and plan, what its checkpoints belong to, and its summary if it has
        finished.
    """
    timeout = config.guard.rank_timeout
    run = decided(lambda: claim_run(config, lock), timeout)
    data = build_datamodule(config, tokenizer, progress=first)
    # Under torchrun and srun one rank tokenises, and the others find it in the cache.
    decided(data.prepare_data, timeout)
    data.prepare_data()
    _check_margins(config, data)
    plan = RunPlan.of(config, data)
    identity = check_identity(config, data, run)
    summary = finished(config, run)
    if summary is not None:
        tell_finished(config, run, summary)
        return run, data, plan, identity, summary
    run = decided(lambda: make_folder(run, lock, first), timeout)
    tell_ranks(run)
    if first:
        write_config(config, run.folder)
        forget_failure(run.folder)
        set_summary_aside(run.folder)
        print_data_report(data, console)
    return run, data, plan, identity, None


def _check_margins(config: Config, data: PreferenceDataModule) -> None:
    """Refuse data that asks for margins where the loss has none, before a model is loaded."""
    options = config.loss
    for store in data.stores:
        asking = np.flatnonzero(store.margins)
        if len(asking) and not supports_margins(options):
            kinds = [name for name, loss in LOSSES.items() if "margin" in loss.uses]
            where = f"{len(asking)} pairs ask for a margin ({store.source(int(asking[0]))} first)"
            why = f"has no reward gap that a margin could be taken off, but {where}"
            fix = f"Remove the 'margin' column, or use one of {', '.join(kinds)}."
            raise ConfigError([Problem("loss.type", why, fix, config.loss.type)])
