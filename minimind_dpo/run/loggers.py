"""Where the curves of a run go: the configured logger, the user's own, and always a CSV file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import Logger

from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.os_errors import first_line
from minimind_dpo.run.folder import Run
from minimind_dpo.training.resume.curves import KeptCSVLogger, keep_rows, tensorboard_from


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
    options: dict[str, Any] = dict(config.logger.options)
    run_dir = run.folder
    if config.logger.name == "none":
        return extra
    step, count = (-1, 0) if run.header is None else (run.header.step, run.header.rows)
    rows = keep_rows(run_dir / "csv" / "metrics.csv", count) if first else []
    csv = KeptCSVLogger(run_dir, **_csv_options(config))
    if config.logger.name == "csv":
        return [csv, *extra]
    if config.logger.name == "tensorboard":
        return [tensorboard_from(run_dir, step, rows, **options), csv, *extra]
    try:
        if config.logger.name == "wandb":
            from lightning.pytorch.loggers import WandbLogger

            wandb = WandbLogger(save_dir=str(run_dir), name=run_dir.name, **options)
            return [wandb, csv, *extra]
        from swanlab.integration.pytorch_lightning import SwanLabLogger

        swanlab = SwanLabLogger(experiment_name=run_dir.name, logdir=str(run_dir), **options)
        return [swanlab, csv, *extra]
    except ModuleNotFoundError as error:
        name = config.logger.name
        raise ModuleNotFoundError(
            f"logger={name} needs a package that is not installed: "
            f"pip install 'minimind-dpo[{name}]'"
        ) from error


def _csv_options(config: Config) -> dict[str, Any]:
    return dict(config.logger.options) if config.logger.name == "csv" else {}
