"""A checkpoint is whole under its name or not there; what is damaged is named and not used."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minimind_dpo import disk
from minimind_dpo.training.optim import misshapen_moment
from minimind_dpo.training.resume.checkpoint_io import (
    HEADER,
    AtomicCheckpointIO,
    CheckpointSaveError,
    DamagedCheckpointError,
    Header,
    newest_valid,
    read_checkpoint,
    read_header,
    set_aside_newer,
    step_file,
    step_files,
    verify,
)


def state(value: float = 1.0) -> dict[str, Any]:
    return {
        "state_dict": {"weight": torch.full((50,), value)},
        "loops": {},
        HEADER: asdict(header(int(value))),
    }


def header(step: int) -> Header:
    return Header(
        step,
        epochs=1,
        shape={"world_size": 2},
        belongs={"data": {"train": "abc"}},
        rows=5,
        start_metrics={"loss": 0.7},
    )


def save(folder: Path, *steps: int) -> list[Path]:
    for step in steps:
        AtomicCheckpointIO().save_checkpoint(state(float(step)), step_file(folder, step))
    return [step_file(folder, step) for step in steps]


def test_what_is_saved_is_read_back_with_nothing_left_beside_it(tmp_path: Path) -> None:
    (path,) = save(tmp_path, 7)
    assert read_checkpoint(path)["state_dict"]["weight"].tolist() == [7.0] * 50
    assert read_header(path) == header(7)
    assert newest_valid(tmp_path) == (path, header(7))
    assert sorted(os.listdir(tmp_path)) == ["step-00000007.ckpt"]


@pytest.mark.parametrize(
    "change",
    [{"step": "7"}, {"step": True}, {"belongs": None}, {"shape": [1]}, {"rows": True}],
)
def test_a_state_whose_header_is_another_one_is_no_state_of_this_program(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    older, newer = save(tmp_path, 5, 9)
    content = state(9)
    content[HEADER] |= change
    AtomicCheckpointIO().save_checkpoint(content, newer)
    with pytest.raises(DamagedCheckpointError, match=f"entry '{next(iter(change))}'"):
        read_header(newer)
    del content[HEADER][next(iter(change))]
    AtomicCheckpointIO().save_checkpoint(content, newer)
    with pytest.raises(DamagedCheckpointError, match=f"no entry '{next(iter(change))}'"):
        read_header(newer)
    assert newest_valid(tmp_path) == (older, header(5))


@pytest.mark.parametrize(
    "alter",
    [
        lambda saved: saved.pop("w", None) or saved.update(more=1),
        lambda saved: saved["loops"].update(fit_loop=3),
        lambda saved: saved["state_dict"].update(weight=torch.zeros(49)),
        lambda saved: saved["state_dict"].update(weight=torch.zeros(50, dtype=torch.float64)),
        lambda saved: saved[HEADER].update(rows=0),
        lambda saved: saved[HEADER].pop("content"),
    ],
)
def test_a_state_with_right_checksums_and_other_entries_is_refused(
    tmp_path: Path, alter: Callable[[dict[str, Any]], Any]
) -> None:
    older, newer = save(tmp_path, 5, 9)
    saved = torch.load(newer, weights_only=True)
    alter(saved)
    torch.save(saved, newer)
    for read in (read_checkpoint, read_header):
        with pytest.raises(DamagedCheckpointError, match=r"step-00000009.ckpt was altered: its en"):
            read(newer)
    assert newest_valid(tmp_path) == (older, header(5))


def flip_in_the_weights(data: bytes) -> bytes:
    """9.0 is 0x41100000; one more bit makes it 9.25."""
    weights = struct.pack("<50f", *[9.0] * 50)
    assert data.count(weights) == 1
    return data.replace(weights, struct.pack("<50f", *[9.0] * 49, 9.25))


DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "its end lost": lambda data: data[:-1],
    "one bit flipped": flip_in_the_weights,
    "garbage": lambda data: b"\x00garbage" * 100,
    "text": lambda data: b"step,loss\n1,2\n",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = save(tmp_path, 5, 9)
    newer.write_bytes(DAMAGE[damage](newer.read_bytes()))
    with pytest.raises(DamagedCheckpointError, match="step-00000009"):
        read_checkpoint(newer)
    assert newest_valid(tmp_path) == (older, header(5))
    assert "step-00000009.ckpt" in caplog.text
    older.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"(?s)no checkpoint .*-00000009.*-00000005"):
        newest_valid(tmp_path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_is_loaded(tmp_path: Path, where: float, bit: int) -> None:
    (path,) = save(tmp_path, 3)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        loaded = read_checkpoint(path)
    except DamagedCheckpointError:
        return
    # Between the records there is padding, and dates that nobody reads.
    assert loaded["state_dict"]["weight"].tolist() == [3.0] * 50
    assert loaded[HEADER] == state(3)[HEADER]


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("code-was-run",)


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious(), "loops": {}}, "zip.ckpt")
    with zipfile.ZipFile("raw.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Malicious()))
    Path("plain.ckpt").write_bytes(pickle.dumps(Malicious()))
    for name in ("zip.ckpt", "raw.ckpt", "plain.ckpt"):
        with pytest.raises(DamagedCheckpointError, match=name):
            read_checkpoint(Path(name))
        with pytest.raises(DamagedCheckpointError, match=name):
            read_header(Path(name))
    assert not Path("code-was-run").exists()


def test_weights_alone_are_no_training_state(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"model\.path"):
        read_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(DamagedCheckpointError, match=r"model\.path"):
        read_header(tmp_path / "model.ckpt")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_keeps_the_state_before_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (path,) = save(folder, 4)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(disk.os, "fsync", full)
    with pytest.raises(CheckpointSaveError, match=r"disk is full.*step-00000004.*resume=auto"):
        save(folder, 4)
    assert path.read_bytes() == before
    assert os.listdir(folder) == [path.name]


def test_what_is_not_on_disk_as_written_does_not_replace_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = save(tmp_path, 4)
    before = path.read_bytes()

    def bad_disk(checkpoint: Any, file: IO[bytes]) -> None:
        file.write(before[:-40])

    monkeypatch.setattr(torch, "save", bad_disk)
    with pytest.raises(CheckpointSaveError, match="damaged"):
        save(tmp_path, 4)
    assert path.read_bytes() == before
    verify(path)


def test_states_after_the_one_resumed_are_set_aside_not_lost(tmp_path: Path) -> None:
    save(tmp_path, 3, 20, 100)
    set_aside_newer(tmp_path, 3)
    assert [path.name for path in step_files(tmp_path)] == ["step-00000003.ckpt"]
    aside = sorted(os.listdir(tmp_path / "superseded"))
    assert aside == ["step-00000020.ckpt", "step-00000100.ckpt"]


@pytest.mark.parametrize("entry", [torch.zeros(0), torch.zeros(3, 2), 1e9])
def test_a_moment_that_does_not_fit_its_weight_is_found(entry: object) -> None:
    """A fused kernel would read past the end of a smaller one."""
    weights = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    assert misshapen_moment(optimizer) == ""  # before the first step there are none
    sum(weight.sum() for weight in weights).backward()
    optimizer.step()
    assert misshapen_moment(optimizer) == ""
    optimizer.state[weights[0]]["exp_avg_sq"] = entry
    assert misshapen_moment(optimizer) == "exp_avg_sq of weight 0"
