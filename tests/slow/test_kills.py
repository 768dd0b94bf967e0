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


def test_twenty_kills_change_nothing(cli: Any) -> None:
    # 45 pairs, 2 a micro-batch, 4 micro-batches a step: 23 micro-batches, 6 steps an epoch, the
    # last one cut to 3 micro-batches with 5 pairs; dropout, and workers.
    args = [
        "trainer.accumulate_grad_batches=4",
        "trainer.max_epochs=16",
        "model.dropout=0.1",
        "data.num_workers=2",
        "trainer.val_check_interval=2",
    ]
    code, text = cli.run(*args, "run_dir=whole")
    assert code == 0, text
    draw, moments = random.Random(1), []
    for _ in range(20):
        process = cli.start(*args, "run_dir=killed", "resume=auto")
        cli.wait_for_steps("killed", draw.randint(1, 4), process)
        # A step takes about 30 ms here, so this falls anywhere into one: forward, save, validation.
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL, process.text()
        assert process.survivors() == []
        moments.append(cli.newest_step("killed"))
    print(moments)
    assert sorted(moments) == moments
    assert len(set(moments)) == 20
    assert moments[-1] < 96
    code, text = cli.run(*args, "run_dir=killed", "resume=auto")
    assert code == 0, text
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
