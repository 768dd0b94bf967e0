"""Killed at any moment and started again, a run ends bitwise where it would have ended."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow


def assert_same_end(cli: Any, run: str, whole: str) -> None:
    got, expected = cli.weights(run), cli.weights(whole)
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    # Every point of every curve, learning rates among them, is there once and the same.
    assert cli.curve(run) == cli.curve(whole)


def newest_step(cli: Any, run: str) -> str:
    states = (cli.folder / run / "checkpoints").glob("step-*.ckpt")
    return max((path.name for path in states), default="none")


def test_twenty_kills_change_nothing(cli: Any) -> None:
    # 45 pairs, 2 a micro-batch, 4 micro-batches a step: 23 micro-batches, 6 steps an epoch, the
    # last one cut to 3 micro-batches with 5 pairs; dropout, and workers.
    args = [
        "trainer.accumulate_grad_batches=4",
        "trainer.max_epochs=6",
        "model.dropout=0.1",
        "data.num_workers=2",
        "trainer.val_check_interval=8",
    ]
    started = time.monotonic()
    code, text = cli.run(*args, "run_dir=whole")
    assert code == 0, text
    took = time.monotonic() - started
    draw, kills, code, moments = random.Random(1), 0, -1, []
    while code != 0:
        process = cli.start(*args, "run_dir=killed", "resume=auto")
        if kills < 20:
            # The first seconds are preparation; most kills fall into the few that train.
            time.sleep(draw.uniform(0.25, 0.75) * took)
            process.kill()
            kills += 1
        code = process.wait()
        assert code in (0, -signal.SIGKILL), process.text()
        assert process.survivors() == []
        moments.append(newest_step(cli, "killed"))
        if code == 0 and kills < 20:
            # It got to its end: go on killing from an earlier state.
            states = sorted((cli.folder / "killed" / "checkpoints").glob("step-*.ckpt"))
            states[-1].unlink()
            code = -1
    assert kills == 20
    assert len(set(moments)) > 5, moments  # they fell into training, at many places
    assert_same_end(cli, "killed", "whole")


def test_a_kill_inside_a_save_leaves_the_state_before(cli: Any) -> None:
    code, text = cli.run("run_dir=whole", "trainer.max_epochs=6")
    assert code == 0, text
    states = cli.folder / "killed" / "checkpoints"
    for wanted in (5, 9, 14):
        process = cli.start("run_dir=killed", "trainer.max_epochs=6", "resume=auto")
        seen, end = set(), time.monotonic() + 60
        while len(seen) < wanted and time.monotonic() < end:
            # A temporary file is there while a state is written.
            seen |= {path.name for path in states.glob(".*.tmp")}
        process.kill()
        assert process.wait() == -signal.SIGKILL
        for path in states.glob("step-*.ckpt"):
            torch.load(path, weights_only=True)
    code, text = cli.run("run_dir=killed", "trainer.max_epochs=6", "resume=auto")
    assert code == 0, text
    assert_same_end(cli, "killed", "whole")
    assert list(states.glob(".*.tmp")) == []
