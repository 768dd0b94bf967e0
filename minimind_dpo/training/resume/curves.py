"""Curves that go on where a resumed run goes on: each point once, none missing.

A state says how many rows of `metrics.csv` were written before it. A run that resumes from it keeps
those and logs the rest anew. TensorBoard hides every point from the state's step on; the points of
that step that are kept are written to it once more.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from minimind_dpo.disk import Rows, read_rows, replacing


class KeptCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes what earlier launches of a run logged, without that.

    Args:
        save_dir: The run's folder.
        version: Folder below it.
        options: Keywords of Lightning's logger.

    Raises:
        ValueError: Its number of points between writes is none.
    """

    def __init__(self, save_dir: Path, version: str = "csv", **options: Any) -> None:
        points = options.get("flush_logs_every_n_steps", 1)
        if type(points) is not int or points < 1:
            raise ValueError(f"flush_logs_every_n_steps must be a number above 0, not {points!r}")
        super().__init__(str(save_dir), name="", version=version, **options)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    """Adds rows to a file; writes it anew, whole, where a curve is new."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys, rows = read_rows(Path(self.metrics_file_path))
        self.rows = len(rows)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record a row."""
        super().log_metrics(metrics_dict, step)
        self.rows += 1

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file here."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Lightning truncates the file here: a kill before it is written again loses all rows."""
        path = Path(self.metrics_file_path)
        write_rows(path, fieldnames, read_rows(path)[1])


def rows_logged(trainer: L.Trainer) -> int:
    """Rows of a run's `metrics.csv` up to now; -1 where it has none."""
    for logger in trainer.loggers:
        if isinstance(logger, KeptCSVLogger) and isinstance(logger.experiment, _AppendingWriter):
            return logger.experiment.rows
    return -1


def flush_curves(trainer: L.Trainer) -> None:
    """Bring what is logged so far on disk: a resumed run does not log it again."""
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.flush()


def write_rows(path: Path, header: list[str], rows: Rows) -> None:
    """Write a CSV file of curves whole or not at all; columns that a row lacks stay empty."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=header)
        writer.writeheader()
        writer.writerows(rows)


def keep_rows(path: Path, count: int) -> Rows:
    """Drop the rows of a CSV file that a resumed run logs anew, and return those that stay.

    Args:
        path: The file; may be missing.
        count: Rows that were there when the state was saved; -1 keeps all.
    """
    header, rows = read_rows(path)
    if header and 0 <= count < len(rows):
        rows = rows[:count]
        write_rows(path, header, rows)
    return rows


def log_hyperparameters(logger: Logger, values: dict[str, Any], metrics: list[str]) -> None:
    """What a run is told apart by; TensorBoard's HParams tab shows it beside some curves."""
    logger.log_hyperparams(values)
    experiment = logger.experiment if isinstance(logger, TensorBoardLogger) else None
    if not isinstance(experiment, SummaryWriter):  # on other ranks Lightning has none
        return
    writer: Any = experiment.file_writer
    # NOTE: Lightning would log the curves' values with them, a second point at step 0.
    for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
        writer.add_summary(summary)


def tensorboard_from(run_dir: Path, step: int, rows: Rows, **options: Any) -> TensorBoardLogger:
    """TensorBoard files in a run's folder that go on after a step.

    Args:
        run_dir: The run's folder.
        step: Optimizer steps that are done; below 0 for a fresh run.
        rows: Of `metrics.csv`, those that stay.
        options: Keywords of the logger.
    """
    logger = TensorBoardLogger(
        str(run_dir),
        name="",
        version="tensorboard",
        default_hp_metric=False,
        purge_step=max(0, step),
        **options,
    )
    for row in rows:
        if row["step"] == str(step):
            numbers = {name: float(value) for name, value in row.items() if value}
            numbers.pop("step")
            logger.log_metrics(numbers, step)
    return logger
