"""`samples.md` has one block a step, whatever was run twice and whatever is in it."""

from __future__ import annotations

import re
from pathlib import Path

from minimind_dpo.training.callbacks.samples import SHOWN, headed, quoted, write_block


def steps(path: Path) -> list[int]:
    return [int(step) for step in re.findall(r"^## Step (\d+)$", path.read_text(), flags=re.M)]


def test_a_step_that_is_run_again_replaces_its_block_and_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    for step in (0, 10, 20, 30):
        write_block(path, step, f"text {step}")
    write_block(path, 20, "again")
    assert steps(path) == [0, 10, 20]
    assert path.read_text() == (
        "## Step 0\n\ntext 0\n\n## Step 10\n\ntext 10\n\n## Step 20\n\nagain\n\n"
    )


def test_a_note_on_top_and_bytes_of_another_encoding_stay_and_block_nothing(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    write_block(path, 1, "text 1")
    path.write_bytes(b"# My notes\n\n## Steps to look at\n" + b"\xff\n" + path.read_bytes())
    write_block(path, 2, "text 2")
    assert steps(path) == [1, 2]
    assert path.read_text().startswith("# My notes\n\n## Steps to look at\n\ufffd\n## Step 1\n")


def test_an_answer_that_looks_like_a_heading_is_none(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    answer = "First:\n## Step 99\n\nThen."
    assert quoted(answer) == "> First:\n> ## Step 99\n>\n> Then."
    write_block(path, 1, quoted(answer))
    write_block(path, 2, "next")
    assert steps(path) == [1, 2]
    assert "Step 99" in path.read_text()


def test_a_prompt_that_looks_like_a_heading_is_none(tmp_path: Path) -> None:
    path = tmp_path / "samples.md"
    prompt = "Hello\n## Step 99\n\nAnswer:\n"
    assert headed("Hello") == "**Hello**"
    assert headed(prompt) == "    Hello\n    ## Step 99\n    \n    Answer:"
    write_block(path, 1, headed(prompt))
    write_block(path, 2, "next")
    assert steps(path) == [1, 2]


def test_of_a_long_prompt_the_end_is_shown() -> None:
    assert headed("a" * 10 + "b" * SHOWN) == "**… " + "b" * SHOWN + "**"
