"""Curves as CSV that go on where a resumed run goes on."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from minimind_dpo.disk import replacing


class KeptCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes what earlier launches of a run logged, without that.

    Args:
        save_dir: The run's folder.
        version: Folder below it.
        options: Keywords of Lightning's logger.

    The rows that belong to the run's past are chosen by `keep_until` before.
    """

    def __init__(self, save_dir: Path, version: str = "csv", **options: Any) -> None:
        super().__init__(str(save_dir), name="", version=version, **options)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _AppendingWriter(log_dir=self.log_dir)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics_keys = read_rows(Path(self.metrics_file_path))[0]

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes the file here."""


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV file of curves; nothing where there is none.

    A row that a crash cut short is left out; bytes that are no UTF-8 are replaced.
    """
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        rows = [row for row in reader if None not in row and None not in row.values()]
    return header, rows


def keep_until(path: Path, step: int, validation_due: bool) -> None:
    """Drop the rows of a CSV file that a run which resumes after `step` logs anew.

    Args:
        path: The file; may be missing.
        step: Optimizer steps that are done.
        validation_due: Whether the validation at `step` is run again.
    """
    header, rows = read_rows(path)
    if not header:
        return

    def past(row: dict[str, str]) -> bool:
        again = validation_due and any(v for name, v in row.items() if name.startswith("val/"))
        at = int(row["step"] or 0) if row.get("step", "").isdigit() else -1
        return 0 <= at < step or (at == step and not again)

    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=header)
        writer.writeheader()
        writer.writerows(row for row in rows if past(row))
