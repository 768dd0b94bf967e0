"""A file is read once, and again as soon as it is another one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minimind_dpo import train, unchanged
from minimind_dpo.training import distributed as ranks
from minimind_dpo.unchanged import while_unchanged


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unchanged, "_SETTLED", -1.0)
    reads = []

    @while_unchanged
    def content(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    file = tmp_path / "a"
    with pytest.raises(FileNotFoundError):
        content(file)
    file.write_text("one")
    assert [content(file), content(file)] == ["one", "one"]
    assert len(reads) == 2  # one of them found nothing
    # Saved anew under its name, as long and as old as before.
    (tmp_path / "new").write_text("two")
    os.utime(tmp_path / "new", ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(tmp_path / "new", file)
    assert content(file) == "two"


def test_a_file_that_is_still_warm_is_not_trusted(tmp_path: Path) -> None:
    reads = []

    @while_unchanged
    def content(path: Path) -> str:
        reads.append(path)
        return path.read_text()

    (tmp_path / "a").write_text("one")
    content(tmp_path / "a")
    content(tmp_path / "a")
    assert len(reads) == 2


def test_only_a_rank_that_this_run_started_leaves_models_to_the_one_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train.LAUNCHER_VARIABLE == ranks._PARENT
    monkeypatch.setenv(train.LAUNCHER_VARIABLE, str(os.getppid()))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not train._is_further_rank()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert train._is_further_rank()
    monkeypatch.setenv(train.LAUNCHER_VARIABLE, "1")  # torchrun's, in the shell of another run
    assert not train._is_further_rank()
