"""One process at a time in a folder, however the one before ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.lock import LOCK_FILE, FolderLock
from minimind_dpo.run.sweep import run_sweep

HOLDER = """
import os, sys, time
from pathlib import Path
from minimind_dpo.run.lock import FolderLock
lock = FolderLock()
lock.take(Path(sys.argv[1]), "run_dir")
if os.fork() == 0:
    time.sleep(60)  # as a process that loads data, which outlives its parent for a moment
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(os.name == "nt", reason="forks and kills")
def test_the_second_process_is_told_who_holds_it_until_that_one_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with FolderLock() as lock:
            with pytest.raises(ConfigError, match=f"in use by process {holder.pid} on .* since"):
                lock.take(tmp_path, "run_dir")
            assert not lock.held
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            lock.take(tmp_path, "run_dir")
            assert lock.held
            assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_lock_that_is_given_back_can_be_taken_again(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock() as lock:
            lock.take(tmp_path, "run_dir")
            lock.take(tmp_path, "run_dir")  # its own: nothing to do
        assert not lock.held


def test_two_runs_in_one_process_exclude_each_other_too(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with FolderLock() as first, FolderLock() as second:
        first.take(tmp_path, "run_dir")
        with pytest.raises(ConfigError, match="in use by this very process"):
            second.take(tmp_path / "a" / "..", "run_dir")
        assert not second.held
        # The refusal has not freed it: another process is refused as well.
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()} on" in refused.stderr
        first.release()
        second.take(tmp_path, "run_dir")
        assert second.held


@pytest.mark.skipif(os.name == "nt", reason="deletes an open file")
def test_a_lock_whose_file_is_deleted_is_taken_anew_before_a_second_run_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path, "run_dir")
        lock.keep()
        assert caplog.text == ""
        (tmp_path / LOCK_FILE).unlink()
        lock.keep()
        assert "was deleted" in caplog.text
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"in use by process {os.getpid()} on" in refused.stderr


@pytest.mark.skipif(os.name == "nt", reason="forks and kills")
def test_of_two_runs_in_a_folder_whose_lock_was_deleted_the_first_ends(tmp_path: Path) -> None:
    with FolderLock() as lock:
        lock.take(tmp_path, "run_dir")
        (tmp_path / LOCK_FILE).unlink()
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match=f"in use by process {second.pid} on"):
                lock.keep()
            os.killpg(second.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_a_sweep_folder_belongs_to_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match=f"run_dir={tmp_path}: is in use"):
            run_sweep(tmp_path, lambda: None)
        os.killpg(holder.pid, signal.SIGKILL)
