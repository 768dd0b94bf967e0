"""States that a thread writes: the same files, the same guarantees, and failures that are told."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from minimind_dpo.training.resume import checkpoint_io
from minimind_dpo.training.resume.background_write import set_aside
from minimind_dpo.training.resume.checkpoint_io import (
    AtomicCheckpointIO,
    CheckpointSaveError,
    read_checkpoint,
    step_file,
    step_files,
    step_of,
)


def state(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((50,), value)}, "loops": {}}


def weight(path: Path) -> float:
    return float(read_checkpoint(path)["state_dict"]["weight"][0])


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        for index, (x, y) in enumerate(zip(one, other, strict=True)):
            assert_equal(x, y, f"{place}[{index}]")
    else:
        assert one == other, place


def test_a_run_s_states_are_those_of_a_run_that_waits_for_them(toy: Any) -> None:
    toy.fit("waits")
    toy.fit("thread", plugins=[AtomicCheckpointIO(background=True)])
    waits, thread = (toy.folder / run / "checkpoints" for run in ("waits", "thread"))
    assert sorted(os.listdir(waits)) == sorted(os.listdir(thread))
    assert len(step_files(waits)) == 15
    for path in step_files(waits):
        one, other = read_checkpoint(path), read_checkpoint(thread / path.name)
        for content in (one, other):
            content.pop("callbacks")  # the best ones are named with their folder's losses
        assert_equal(one, other, path.name)
    last = read_checkpoint(step_file(waits, 15))["state_dict"]
    module, _ = toy.fit(
        "again", resume=step_file(thread, 7), plugins=[AtomicCheckpointIO(background=True)]
    )
    assert_equal(dict(module.state_dict()), dict(last))


def test_what_is_written_is_the_state_as_it_was_when_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, save = threading.Event(), torch.save

    def slow(*args: Any) -> None:
        assert go_on.wait(20)
        save(*args)

    monkeypatch.setattr(checkpoint_io.torch, "save", slow)
    io, content, path = AtomicCheckpointIO(background=True), state(1.0), tmp_path / "a.ckpt"
    io.save_checkpoint(content, path)
    content["state_dict"]["weight"].fill_(2.0)  # the next step
    assert not path.exists()
    go_on.set()
    io.teardown()
    assert weight(path) == 1.0


def test_tensors_that_are_one_stay_one_in_the_copy() -> None:
    tied = torch.ones(4)
    copied, ready = set_aside({"a": tied, "b": [tied], "c": (3, "x")})
    ready()
    assert copied["a"] is copied["b"][0]
    assert copied["a"] is not tied
    assert copied["c"] == (3, "x")


@pytest.mark.parametrize("fails", ["write", "read back"])
def test_on_a_full_disk_the_older_states_stay_and_the_run_says_so(
    fails: str, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, verify, writes = torch.save, checkpoint_io.verify, []

    def full(content: Any, file: Any) -> None:
        writes.append(content["global_step"])
        if fails == "write" and writes[-1] == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    def damaged(path: Path) -> None:
        if fails == "read back" and writes and writes[-1] == 4:
            raise checkpoint_io.DamagedCheckpointError(f"{path} is damaged")
        verify(path)

    monkeypatch.setattr(checkpoint_io.torch, "save", full)
    monkeypatch.setattr(checkpoint_io, "verify", damaged)
    toy.keep = 2
    with pytest.raises(CheckpointSaveError, match=r"step-00000004\.ckpt could not be saved"):
        toy.fit("run", plugins=[AtomicCheckpointIO(background=True)], val_check_interval=100)
    # Nothing is deleted for a state that is not there.
    assert [step_of(path) for path in step_files(toy.folder / "run" / "checkpoints")] == [3, 2]
    assert max(writes) == 4


def test_a_failure_is_raised_at_the_next_step_and_not_only_at_the_next_save(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = AtomicCheckpointIO(background=True)

    class LongSteps(L.Callback):
        """Each step takes longer than a write."""

        steps = 0

        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            LongSteps.steps = trainer.global_step
            while not all(job.done() for job in io.writer._jobs):
                time.sleep(0.01)

    def full(content: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_io.torch, "save", full)
    toy.every, toy.extra = 2, [LongSteps()]
    with pytest.raises(CheckpointSaveError, match="the disk is full"):
        toy.fit("run", plugins=[io], val_check_interval=100)
    assert LongSteps.steps == 2  # in the third step


def test_a_kill_during_a_write_leaves_the_states_before_it(tmp_path: Path) -> None:
    def killed() -> None:
        io = AtomicCheckpointIO(background=True)
        io.save_checkpoint(state(1.0), step_file(tmp_path, 1))
        io.teardown()
        checkpoint_io.verify = lambda path: os._exit(9)
        io.save_checkpoint(state(2.0), step_file(tmp_path, 2))
        io.remove_checkpoint(step_file(tmp_path, 1))
        io.teardown()

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert [step_of(path) for path in step_files(tmp_path)] == [1]
    assert weight(step_file(tmp_path, 1)) == 1.0
    AtomicCheckpointIO().save_checkpoint(state(3.0), step_file(tmp_path, 3))
    assert sorted(os.listdir(tmp_path)) == ["step-00000001.ckpt", "step-00000003.ckpt"]


def test_the_older_state_goes_after_the_newer_one_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, verify = threading.Event(), checkpoint_io.verify

    def slow(path: Path) -> None:
        assert go_on.wait(20)
        verify(path)

    old, new = step_file(tmp_path, 1), step_file(tmp_path, 2)
    AtomicCheckpointIO().save_checkpoint(state(1.0), old)
    io = AtomicCheckpointIO(background=True)
    monkeypatch.setattr(checkpoint_io, "verify", slow)
    io.save_checkpoint(state(2.0), new)
    io.remove_checkpoint(old)
    assert old.exists()
    go_on.set()
    assert io.load_checkpoint(new)["state_dict"]["weight"][0] == 2.0
    io.teardown()
    assert not old.exists()
