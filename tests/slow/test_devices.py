"""One run on several processes: the same numbers, one folder, and an end for all of them."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

# 41 pairs, 8 a step: 6 steps an epoch, the last one with a single pair, so that a rank is left
# without any. Double precision, so that only the order of additions differs.
EXACT = [
    "trainer.precision=64-true",
    "model.dtype=float64",
    "data.train=odd.jsonl",
    "trainer.val_check_interval=1.0",
]
ONE = ["data.batch_size=8", "trainer.accumulate_grad_batches=1"]
SPLIT = ["data.batch_size=4", "trainer.accumulate_grad_batches=2"]
TWO = ["data.batch_size=4", "trainer.accumulate_grad_batches=1", "trainer.devices=2"]


@pytest.fixture
def odd(cli: Any) -> Any:
    lines = (cli.folder / "train.jsonl").read_text().splitlines(keepends=True)
    (cli.folder / "odd.jsonl").write_text("".join(lines[:41]))
    return cli


def run_ranks(cli: Any, *args: str) -> None:
    ranks = cli.ranks(2, *args)
    assert [(p.wait(), p.text()) for p in ranks if p.wait()] == []


def finish(processes: list[Any]) -> list[int]:
    return [process.wait() for process in processes]


def assert_close(cli: Any, run: str, whole: str, relative: float) -> None:
    got, expected = cli.curve(run), cli.curve(whole)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert float(got[key]) == pytest.approx(float(value), rel=relative, abs=relative), key
    weights = cli.weights(run)
    for name, tensor in cli.weights(whole).items():
        if "c_attn.bias" not in name:  # a key bias has no gradient but noise, which Adam scales up
            torch.testing.assert_close(weights[name], tensor, atol=relative * 100, rtol=1e-6)


def test_numbers_do_not_depend_on_devices_or_accumulation(odd: Any) -> None:
    assert odd.run(*EXACT, *ONE, "run_dir=one")[0] == 0
    assert odd.run(*EXACT, *SPLIT, "run_dir=split")[0] == 0
    assert finish(odd.ranks(2, *EXACT, *TWO, "run_dir=two")) == [0, 0]
    assert ("6", "train/loss") in odd.curve("one")
    assert ("12", "val/rewards/margins") in odd.curve("one")
    assert_close(odd, "split", "one", 1e-9)
    assert_close(odd, "two", "one", 1e-9)


def test_a_run_goes_on_with_other_devices_at_the_exact_pair(odd: Any) -> None:
    assert odd.run(*EXACT, *ONE, "run_dir=whole")[0] == 0
    # Back to the state of step 11, in the middle of the second epoch.
    for name, first, then in (("up", SPLIT, TWO), ("down", TWO, SPLIT)):
        processes = (
            odd.ranks(2, *EXACT, *first, f"run_dir={name}")
            if first is TWO
            else [odd.start(*EXACT, *first, f"run_dir={name}")]
        )
        assert finish(processes) == [0] * len(processes)
        for state in sorted((odd.folder / name / "checkpoints").glob("step-*.ckpt"))[1:]:
            state.unlink()
        assert (odd.folder / name / "checkpoints" / "step-00000011.ckpt").exists()
        args = [*EXACT, *then, f"run_dir={name}", "resume=auto"]
        processes = odd.ranks(2, *args) if then is TWO else [odd.start(*args)]
        assert finish(processes) == [0] * len(processes)
        assert "resuming at the exact pair" in processes[0].text()
        assert_close(odd, name, "whole", 1e-9)


def test_five_kills_of_two_ranks_change_nothing(cli: Any) -> None:
    args = [
        "trainer.devices=2",
        "trainer.max_epochs=4",
        "model.dropout=0.1",
        "data.num_workers=2",
    ]
    assert finish(cli.ranks(2, *args, "run_dir=whole")) == [0, 0]
    draw, moments = random.Random(3), []
    for kill in range(5):
        ranks = cli.ranks(2, *args, "run_dir=killed", "resume=auto", "guard.rank_timeout=20")
        cli.wait_for_steps("killed", draw.randint(2, 5), ranks[0])
        time.sleep(draw.uniform(0, 0.1))
        ranks[kill % 2].kill()
        codes = finish(ranks)
        assert codes[kill % 2] == -signal.SIGKILL
        assert 0 not in codes
        assert all(process.survivors() == [] for process in ranks)
        moments.append(cli.newest_step("killed"))
    print(moments)
    assert len(set(moments)) == 5
    ranks = cli.ranks(2, *args, "run_dir=killed", "resume=auto")
    assert finish(ranks) == [0, 0], ranks[0].text()
    got, expected = cli.weights("killed"), cli.weights("whole")
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert cli.curve("killed") == cli.curve("whole")


def test_the_first_cause_is_told_and_all_ranks_end(cli: Any) -> None:
    args = ["trainer.devices=2", "run_dir=run", "guard.rank_timeout=20"]
    ranks = cli.ranks(2, *args, extra={1: {"raise_at": 3}})
    assert finish(ranks) == [1, 1]
    assert "ArithmeticError: the cause to be told" in ranks[1].text()
    assert "Rank 0 ends: rank 1 failed first" in ranks[0].text()
    assert "Traceback" not in ranks[0].text()


def test_a_rank_that_disappears_or_is_stuck_ends_the_run(cli: Any) -> None:
    args = ["trainer.devices=2", "trainer.max_epochs=400", "guard.rank_timeout=30"]
    for number, said in (
        (signal.SIGKILL, "rank 1 disappeared: it was ended by SIGKILL"),
        (signal.SIGSTOP, "waited 30 s for another rank"),
    ):
        run = number.name
        process = cli.start(*args, f"run_dir={run}")
        cli.wait_for_steps(run, 1, process)
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
            child = int(file.read().split()[0])
        os.kill(child, number)
        sent = time.monotonic()
        assert process.wait() == 1, process.text()
        print(f"{run}: ended in {time.monotonic() - sent:.1f} s")
        assert time.monotonic() - sent < 60
        assert said in process.text(), process.text()
        assert process.survivors() == []


def test_a_launcher_that_is_killed_takes_its_ranks_along(cli: Any) -> None:
    process = cli.start("trainer.devices=2", "trainer.max_epochs=200", "run_dir=run")
    cli.wait_for_steps("run", 1, process)
    process.kill()
    process.wait()
    assert process.survivors() == []


def test_ranks_with_different_settings_are_refused_by_key(cli: Any) -> None:
    ranks = cli.ranks(2, "trainer.devices=2", extra={1: {"args": ["loss.beta=0.3"]}})
    assert finish(ranks) == [2, 2]
    assert "loss.beta is 0.3 on rank 1, 0.1 on rank 0" in "".join(p.text() for p in ranks)
    assert not list(cli.folder.glob("outputs/train/*/checkpoints"))


def test_a_wrong_number_of_launched_processes_is_refused(cli: Any) -> None:
    ranks = cli.ranks(2, "trainer.devices=1")
    assert finish(ranks) == [2, 2]
    assert "the launcher started 2 processes" in ranks[0].text()
    assert not (cli.folder / "outputs").exists()
