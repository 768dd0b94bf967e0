"""A run that is killed and resumed leaves each point of each curve once, in CSV and TensorBoard."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.resume.checkpoint_io import read_header, step_files, step_of
from minimind_dpo.training.resume.curves import (
    KeptCSVLogger,
    keep_rows,
    log_hyperparameters,
    read_rows,
    tensorboard_from,
)


def launch(toy: Any, folder: Path, state: Path | None = None) -> None:
    """As `run.loggers` does it."""
    header = None if state is None else read_header(state)
    step, count = (-1, 0) if header is None else (header.step, header.rows)
    rows = keep_rows(folder / "csv" / "metrics.csv", count)
    loggers = [tensorboard_from(folder, step, rows), KeptCSVLogger(folder)]
    toy.extra = [WeightsChanged()]
    toy.fit(folder.name, resume=state, logger=loggers)


def csv_points(folder: Path) -> list[tuple[str, str, float]]:
    rows = read_rows(folder / "csv" / "metrics.csv")[1]
    return [
        (row["step"], name, float(value))
        for row in rows
        for name, value in row.items()
        if value and name != "step"
    ]


def tensorboard_points(folder: Path) -> list[tuple[str, str, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [
        (str(event.step), tag, event.value)
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    ]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_each_point_is_there_once_whatever_state_a_run_goes_on_from(toy: Any) -> None:
    # Validations at steps 2, 4 and so on; at most of those a state was saved just before.
    toy.trainer = {"val_check_interval": 2, "max_epochs": 2, "log_every_n_steps": 3}
    whole = toy.folder / "whole"
    launch(toy, whole)
    expected = csv_points(whole)
    assert max(Counter(point[:2] for point in expected).values()) == 1
    assert {name for _, name, _ in expected} > {"train/loss", "val/loss", "train/weights_changed"}
    # What a kill leaves: everything that was logged, and a state of some steps before.
    for state in [path for path in step_files(whole / "checkpoints") if step_of(path) in (1, 4, 9)]:
        launch(toy, whole, state)
        assert csv_points(whole) == expected, state.name
        shown = tensorboard_points(whole)
        assert max(Counter(point[:2] for point in shown).values()) == 1, state.name
        assert {(step, name): value for step, name, value in shown} == {
            (step, name): pytest.approx(value, rel=1e-6) for step, name, value in expected
        }


def test_a_file_of_curves_is_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = KeptCSVLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics({"train/loss": 0.1 * step}, step)
    logger.save()
    before = read_rows(tmp_path / "csv" / "metrics.csv")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    logger.log_metrics({"train/weights_changed": 0.5}, 4)  # a new curve: a new header
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerows", killed)
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert read_rows(tmp_path / "csv" / "metrics.csv") == before
    again = KeptCSVLogger(tmp_path)  # the next launch
    again.log_metrics({"train/weights_changed": 0.5}, 4)
    again.save()
    header, rows = read_rows(tmp_path / "csv" / "metrics.csv")
    assert header == ["step", "train/loss", "train/weights_changed"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]


def test_rows_are_dropped_by_their_number_and_a_torn_one_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n0,,0.7\n1,0.6,\n2,0.5,\n2,,0.4\n3,0.3,\n3,0.")
    assert [row["step"] for row in keep_rows(path, -1)] == ["0", "1", "2", "2", "3"]
    assert [row["step"] for row in keep_rows(path, 3)] == ["0", "1", "2"]
    assert read_rows(path)[1][-1]["train/loss"] == "0.5"
    assert keep_rows(path, 0) == []
    assert keep_rows(tmp_path / "missing.csv", 3) == []


def test_hyperparameters_are_left_to_the_rank_that_has_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    log_hyperparameters(tensorboard_from(tmp_path, -1, []), {"loss.beta": 0.1}, ["val/loss"])
    assert not list(tmp_path.rglob("events.*"))


def test_hyperparameters_add_no_point_to_a_curve(tmp_path: Path) -> None:
    logger = tensorboard_from(tmp_path, -1, [])
    log_hyperparameters(logger, {"loss.beta": 0.1, "loss.type": "sigmoid"}, ["val/loss"])
    logger.log_metrics({"val/loss": 0.7}, 0)
    logger.save()
    assert tensorboard_points(tmp_path) == [("0", "val/loss", pytest.approx(0.7))]
    assert "loss.beta: 0.1" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()
