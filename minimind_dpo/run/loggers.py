"""Where the curves of a run go: the configured logger, the user's own, and always a CSV file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.os_errors import first_line
from minimind_dpo.run.folder import Run, flat
from minimind_dpo.run.verdict import COMPARED
from minimind_dpo.training.resume.curves import (
    KeptCSVLogger,
    keep_rows,
    log_hyperparameters,
    tensorboard_from,
)


def build_loggers(config: Config, run: Run, extra: list[Logger], first: bool) -> list[Logger]:
    """As `_build`, with each logger begun, so that what its own class refuses is told here.

    Raises:
        ConfigError: Of `logger.options`, in the words of the logger's class.
    """
    try:
        loggers = _build(config, run, extra, first)
        for logger in loggers:
            getattr(logger, "experiment", None)
    except (TypeError, ValueError) as error:
        why = f"{config.logger.name} does not take it ({first_line(error)})"
        raise ConfigError([Problem("logger.options", why, "Leave it out.")]) from error
    return loggers


def _build(config: Config, run: Run, extra: list[Logger], first: bool) -> list[Logger]:
    """The configured logger and the user's own; every run also keeps its curves as CSV.

    In a folder that holds curves already, what the run logs anew is dropped from them.

    Args:
        config: The configuration.
        run: The run's folder, and the state that it goes on from.
        extra: Made of `logger.extra`.
        first: Whether this is the rank that logs.

    Raises:
        ModuleNotFoundError: The logger's own package is not installed; says which extra has it.
    """
    name, options, run_dir = config.logger.name, dict(config.logger.options), run.folder
    if name == "none":
        return extra
    step, count = (-1, 0) if run.header is None else (run.header.step, run.header.rows)
    rows = keep_rows(run_dir / "csv" / "metrics.csv", count) if first else []
    csv = KeptCSVLogger(run_dir, **(options if name == "csv" else {}))
    if name == "csv":
        return [csv, *extra]
    if name == "tensorboard":
        return [tensorboard_from(run_dir, step, rows, **options), csv, *extra]
    return [_online(name, run_dir, options), csv, *extra]


def _online(name: str, run_dir: Path, options: dict[str, Any]) -> Logger:
    """A logger of an optional package."""
    try:
        if name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger(save_dir=str(run_dir), name=run_dir.name, **options)
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        return SwanLabLogger(experiment_name=run_dir.name, logdir=str(run_dir), **options)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"logger={name} needs a package that is not installed: "
            f"pip install 'minimind-dpo[{name}]'"
        ) from error


def log_settings(loggers: list[Logger], config: Config, validates: bool) -> None:
    """Configuration in the HParams tab, beside the curves that runs are compared by."""
    curves = ["val/loss", "val/rewards/accuracies"] if validates else []
    curves += COMPARED if validates and config.evaluate.prompts else ()
    for logger in loggers:
        log_hyperparameters(logger, _settings(config), curves)


def _settings(config: Config) -> dict[str, Any]:
    """What runs are told apart by: few, since each is a column; `config.yaml` has them all."""
    always = ("data.batch_size", "loss.type", "loss.beta", "optim.lr", "seed")
    groups = (
        "loss.",
        "optim.",
        "schedule.",
        "reference.",
        "model.lora.",
        "model.dropout",
        "trainer.",
    )
    defaults = flat(Config())
    return {
        key: value
        for key, value in flat(config).items()
        if key in always or (key.startswith(groups) and value != defaults.get(key))
    }
