"""The commands beside training as a user types them: processes, a pipe, a terminal, exit codes."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minimind_dpo.demo import MODEL, TOKENIZER

pytestmark = pytest.mark.slow

ON_MODEL = (f"model.path={MODEL}", f"model.tokenizer={TOKENIZER}", "trainer.accelerator=cpu")


def command(
    name: str, *arguments: str, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"minimind_dpo.{name}", *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=300,
    )


def test_a_run_is_judged_talked_with_exported_and_reported(
    finished_run: Path, tmp_path: Path
) -> None:
    run = f"run={finished_run}"
    judged = command("evaluate", run, f"to={tmp_path / 'judged'}")
    assert judged.returncode == 0, judged.stderr
    verdict = json.loads((tmp_path / "judged" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict["sentence"] in judged.stdout

    talked = command("chat", run, "temperature=0", text="3加5等于多少？\n你好\n", LC_ALL="C")
    assert (talked.returncode, talked.stderr) == (0, "")
    assert talked.stdout.count("\n") == 2
    assert "8" in talked.stdout

    exported = command("export", run, "format=hf,native,gguf", f"to={tmp_path / 'exported'}")
    assert exported.returncode == 0, exported.stderr
    assert "ollama run demo" in exported.stdout

    reported = command("report", str(finished_run), "report.language=zh")
    assert reported.returncode == 0, reported.stderr
    command("report", str(finished_run))


RIGHT = {"evaluate": ["reference.path=x", "data.val=y"], "chat": ["reference.path=x"], "export": []}
"""Besides a model, what each command reads."""


@pytest.mark.parametrize("name", RIGHT)
def test_wrong_input_ends_with_code_2_a_sentence_and_no_traceback(
    name: str, tmp_path: Path
) -> None:
    for arguments, words in (
        (["runn=x"], "Did you mean run?"),
        (["run=nowhere"], "run=nowhere: does not exist"),
        ([f"model.path={tmp_path / 'no.pth'}", *RIGHT[name]], "model.path="),
        (["model.path=x", "data.num_workers=1"], f"data.num_workers=1: is not read by {name}"),
        (["loss.bta=1", "model.path=x"], "Did you mean"),
    ):
        result = command(name, *arguments)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert words in result.stderr
        assert "Traceback" not in result.stderr


def test_a_reader_that_goes_away_ends_a_talk_with_the_code_of_a_shell(tmp_path: Path) -> None:
    lines = "你好\\n" * 20
    script = f"printf '{lines}' | {sys.executable} -m minimind_dpo.chat {' '.join(ON_MODEL)}"
    done = subprocess.run(
        ["bash", "-c", f"{script} 2>err.txt | head -n 1; echo ${{PIPESTATUS[1]}}; cat err.txt"],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        timeout=300,
    )
    _, code, *rest = done.stdout.strip().split("\n")
    assert (code, rest) == ("141", [])


@contextmanager
def terminal(*arguments: str) -> Iterator[tuple[int, int]]:
    """The command `chat` in a terminal of its own: its pid and the terminal's other end."""
    pid, end = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "minimind_dpo.chat", *arguments])
    try:
        yield pid, end
    finally:
        os.close(end)


def read_until(end: int, words: str, seconds: float = 120) -> str:
    text, limit = b"", time.monotonic() + seconds
    while words not in text.decode(errors="replace"):
        assert time.monotonic() < limit, text.decode(errors="replace")
        if select.select([end], [], [], 0.1)[0]:
            try:
                text += os.read(end, 4096)
            except OSError:  # the other end is closed
                break
    return text.decode(errors="replace")


def test_in_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_leaves() -> None:
    # So hot that no answer ends by itself for a long time.
    hot = ("temperature=50", "top_p=1", "max_new_tokens=16000")
    with terminal(*ON_MODEL, *hot) as (pid, end):
        read_until(end, "> ")
        os.write(end, "你好\n".encode())
        read_until(end, "\n")  # the echo
        before = read_until(end, "", 1) + os.read(end, 200).decode(errors="replace")
        assert before
        os.write(end, b"\x03")
        read_until(end, "> ")
        os.write(end, b"/help\n")
        told = read_until(end, "Ctrl-D leaves")
        assert "/compare" in told
        if "> " not in told.rpartition("Ctrl-D leaves")[2]:
            read_until(end, "> ")  # what is typed before the prompt may be dropped with the echo
        os.write(end, b"\x04")
        read_until(end, "\0never", 120)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
