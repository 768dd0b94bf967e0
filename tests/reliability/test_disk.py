"""A file is whole under its name or not there; refusals of the system are sentences."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import zipfile
from multiprocessing import reduction
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from minimind_dpo import checksums, disk
from minimind_dpo.checksums import while_unchanged, zip_fault
from minimind_dpo.disk import remove_dead, replace, replacing, workspace
from minimind_dpo.os_errors import causes, explain, is_full
from minimind_dpo.run.out_of_memory import is_out_of_memory


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    disk.write_text(target, "new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["summary.json"]


def test_what_is_refused_names_the_target_not_the_temporary_file(tmp_path: Path) -> None:
    full = "I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match="No space left") as refused, replacing(tmp_path / "a"):
        raise SafetensorError(full)
    assert refused.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing, replacing(tmp_path / "a") as temporary:
        temporary.with_name("gone").read_bytes()
    assert missing.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as other, replacing(tmp_path / "a"):
        (tmp_path / "data.jsonl").read_bytes()
    assert other.value.filename == str(tmp_path / "data.jsonl")


def test_files_that_a_library_gives_to_its_owner_alone_get_the_usual_mode(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        with workspace(tmp_path / "export") as space:
            (space / "made").mkdir(mode=0o700)
            (space / "made" / "weights").touch(mode=0o600)
            replace(space / "made", tmp_path / "export")
    finally:
        os.umask(mask)
    assert (tmp_path / "export").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "export" / "weights").stat().st_mode & 0o777 == 0o644


def test_a_workspace_goes_and_only_those_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from minimind_dpo.disk import workspace\n"
        "with workspace(pathlib.Path(sys.argv[1])) as space:\n"
        "    (space / 'made').write_text('half'); print(space, flush=True); sys.stdin.read()"
    )
    target = tmp_path / "export"
    command = [sys.executable, "-c", code, str(target)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdin is not None
    assert other.stdout is not None
    live = Path(other.stdout.readline().strip())
    with workspace(target) as own, workspace(target):
        assert own.is_dir()
        assert (live / "made").read_text() == "half"
    other.kill()
    other.wait()
    assert live.is_dir()
    with workspace(target):
        assert not live.exists()
    assert os.listdir(tmp_path) == []
    other.stdin.close()
    other.stdout.close()


def test_files_of_the_user_are_no_workspaces(tmp_path: Path) -> None:
    for name in ("notes.tmp", ".notes.tmp", ".a.12345678.tmp.txt", ".a.1234567g.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".b.12345678.tmp").write_text("mine")  # no folder
    (tmp_path / ".c.12345678.tmp").mkdir()
    (tmp_path / ".c.12345678.tmp" / "mine").touch()  # without a lock
    before = set(os.listdir(tmp_path))
    disk.write_text(tmp_path / "a", "text")
    assert set(os.listdir(tmp_path)) == {*before, "a"}


def test_a_folder_that_stood_aside_when_the_process_died_gets_its_place_again(
    tmp_path: Path,
) -> None:
    space = tmp_path / ".export.12345678.tmp"
    (space / "export.old").mkdir(parents=True)
    (space / "export.old" / "weights").touch()
    (space / "lock").touch()
    remove_dead(tmp_path)
    assert os.listdir(tmp_path) == ["export"]
    assert os.listdir(tmp_path / "export") == ["weights"]


def test_a_zip_archive_is_compared_with_its_checksums(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights", b"12345678")
    assert zip_fault(path) is None
    path.write_bytes(path.read_bytes().replace(b"12345678", b"12345679"))
    assert zip_fault(path) == "weights does not match its checksum"
    path.write_bytes(b"PK")
    assert "cut short" in str(zip_fault(path))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/tokens"), "a/tokens.*disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file.*disk is full.*make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a"), "quota"),
        (PermissionError(errno.EACCES, "Permission denied", b"a/b"), "a/b.*permission"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "read-only"),
        (OSError(errno.EROFS, "Read-only file system"), "a file.*read-only"),  # a semaphore
        (OSError(errno.EIO, "Input/output error"), "a file.*disk or device reports an error"),
        (OSError(errno.EMFILE, "Too many open files"), "too many files open.*ulimit -n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "too long.*255 bytes.*shorten"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "disk is full"),
    ],
)
def test_refusals_of_the_system_are_sentences(error: Exception, words: str) -> None:
    try:
        raise RuntimeError("unexpected pos 64 vs 0") from error
    except RuntimeError as raised:
        sentence = explain(raised)
    assert sentence is not None
    assert re.search(words, sentence), sentence


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "verdict.json")
    assert disk.read_json(tmp_path / "verdict.json") is None


def test_the_home_of_no_user_is_a_sentence() -> None:
    with pytest.raises(RuntimeError) as caught:
        Path("~no-user-of-this-name/run").expanduser()
    assert "begins with ~" in str(explain(caught.value))


@pytest.mark.skipif(not hasattr(reduction, "recvfds"), reason="Windows hands no files over")
def test_a_loading_process_whose_file_finds_no_room_is_a_sentence() -> None:
    here, there = socket.socketpair()
    there.close()  # as the system drops a file at the limit: its message is empty
    with here, pytest.raises(EOFError) as caught:
        reduction.recvfds(here, 1)
    assert "too many files open" in str(explain(caught.value))


def test_other_errors_have_no_such_sentence() -> None:
    assert explain(ValueError("wrong")) is None
    assert explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "a")) is None
    assert explain(PermissionError(errno.EPERM, "Operation not permitted")) is None  # of no file


def test_a_chain_of_causes_that_leads_back_to_itself_ends() -> None:
    first, second = RuntimeError("writer thread died"), OSError(errno.ENOSPC, "No space left")
    first.__cause__, second.__cause__ = second, first
    assert list(causes(first)) == [first, second]
    assert is_full(first)
    assert not is_out_of_memory(first)
    second.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(first)


def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_SETTLED", -1.0)
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
