"""Output that cannot be written costs a run nothing but that output."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minimind_dpo.output import keep_output

Stdout = Callable[[int, str], io.TextIOWrapper]


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stdout]:
    """Gives this process another standard output, and a standard error to be read."""
    before: list[io.TextIOWrapper] = []

    def replace(descriptor: int, encoding: str) -> io.TextIOWrapper:
        before.append(open(descriptor, "w", encoding=encoding))  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", before[0])
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        keep_output()
        before.append(sys.stdout)  # type: ignore[arg-type]
        return before[1]

    yield replace
    for file in reversed(before):
        file.close()


def test_a_reader_that_goes_away_ends_the_output_and_nothing_else(stdout: Stdout) -> None:
    reading, writing = os.pipe()
    out = stdout(writing, "utf-8")
    print("first", flush=True)
    assert os.read(reading, 99) == b"first\n"
    os.close(reading)
    print("second", flush=True)
    print("third", flush=True)
    assert sys.stderr.getvalue() == "Standard output ends here (Broken pipe); the run goes on.\n"
    assert os.write(out.fileno(), b"by C code") == 9


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
def test_a_full_disk_ends_the_output_and_nothing_else(stdout: Stdout) -> None:
    stdout(os.open("/dev/full", os.O_WRONLY), "utf-8")
    for _ in range(3):
        print("x" * 10_000, flush=True)
    assert sys.stderr.getvalue().count("No space left on device") == 1


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "ascii"])
def test_letters_that_an_encoding_lacks_are_written_by_their_numbers(
    stdout: Stdout, encoding: str
) -> None:
    reading, writing = os.pipe()
    stdout(writing, encoding)
    print("\u2022 e\u0301 \U0001f600", flush=True)
    assert os.read(reading, 99) == rb"\u2022 e\u0301 \U0001f600" + b"\n"


@pytest.mark.parametrize("names", [(), ("stderr",)])
def test_streams_that_were_closed_before_take_what_is_written_and_are_empty(
    names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    keep_output(*names)
    keep_output()
    assert (sys.stdin.read(), sys.stdout.write("nowhere")) == ("", 7)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        os.close(stream.fileno())  # open still


def test_output_in_memory_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", inside)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    keep_output()
    assert sys.stdout is inside


COMMAND = """
import sys
from minimind_dpo.config.commands import end
from minimind_dpo.options.problem import ConfigError
def command(arguments):
    print("one line")
    if arguments:
        raise ConfigError([])
end(command)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
@pytest.mark.parametrize(
    ("redirections", "argument", "code", "told"),
    [
        (">/dev/full", "", 2, "Error: a file cannot be opened or written: the disk is full"),
        ("2>/dev/full", "wrong", 2, ""),
        (">&- 2>&- <&-", "wrong", 2, ""),
        (">&- 2>&-", "", 0, ""),
        ("> >(exec true)", "", 141, ""),
    ],
)
def test_a_command_whose_output_fails_ends_with_its_code_and_no_traceback(
    redirections: str, argument: str, code: int, told: str, tmp_path: Path
) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    wait = "sleep 0.2;" if "true" in redirections else ""
    script = f"({wait} {sys.executable} command.py {argument}) {redirections}"
    path = os.pathsep.join(filter(None, (os.getcwd(), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(told)
    assert done.stderr.count("\n") == bool(told)
