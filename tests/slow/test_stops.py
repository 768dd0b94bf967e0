"""A signal to any process of a run ends all of it within seconds, saved, with the right code."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

LONG = ["trainer.max_epochs=4", "trainer.val_check_interval=0.5"]
# Both sides of a pair of a two-rank run hold what one rank's micro-batches held.
TWO = [*LONG, "trainer.devices=2", "trainer.accumulate_grad_batches=1"]
WORKERS = [*LONG, "data.num_workers=2"]


def wait_for_state(cli: Any, run: str, more_than: int, process: Any) -> None:
    """Until a run has saved some states."""
    end = time.monotonic() + 120
    folder = cli.folder / run / "checkpoints"
    while time.monotonic() < end:
        names = [path.name for path in folder.glob("step-*.ckpt")]
        if any(int(name[5:13]) > more_than for name in names):
            return
        time.sleep(0.01)
    raise AssertionError(process.text())


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def send(process: Any, target: str, number: int) -> None:
    if target == "main":
        os.kill(process.pid, number)
    elif target == "group":
        os.killpg(process.pid, number)
    else:
        os.kill(children(process.pid)[0], number)


def stop_and_go_on(cli: Any, args: list[str], run: str, target: str, number: int) -> float:
    """Stop a run once, resume it to its end; seconds that stopping took."""
    process = cli.start(*args, f"run_dir={run}", "resume=auto")
    wait_for_state(cli, run, 2, process)
    sent = time.monotonic()
    send(process, target, number)
    code = process.wait()
    took = time.monotonic() - sent
    assert code == (130 if number == signal.SIGINT else 143), process.text()
    assert took < 10
    assert process.survivors() == []
    assert "Traceback" not in process.text(), process.text()
    code, text = cli.run(*args, f"run_dir={run}", "resume=auto")
    assert code == 0, text
    return took


def assert_same_end(cli: Any, run: str, whole: str) -> None:
    got, expected = cli.weights(run), cli.weights(whole)
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []
    assert cli.curve(run) == cli.curve(whole)


def test_one_rank_stops_saved_and_goes_on_bitwise(cli: Any) -> None:
    code, text = cli.run(*LONG, "run_dir=whole")
    assert code == 0, text
    for target in ("main", "group"):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            run = f"{target}-{number.name}"
            took = stop_and_go_on(cli, LONG, run, target, number)
            print(f"{run}: stopped in {took:.2f} s")
            assert_same_end(cli, run, "whole")


def test_two_ranks_stop_saved_and_go_on_bitwise(cli: Any) -> None:
    code, text = cli.run(*TWO, "run_dir=whole")
    assert code == 0, text
    for target in ("main", "group", "child"):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            run = f"{target}-{number.name}"
            took = stop_and_go_on(cli, TWO, run, target, number)
            print(f"{run}: stopped in {took:.2f} s")
            assert_same_end(cli, run, "whole")


def test_loading_processes_outlive_a_signal_to_the_whole_group(cli: Any) -> None:
    """As GNU timeout, systemd, SLURM and a terminal that is closed send it."""
    code, text = cli.run(*WORKERS, "run_dir=whole")
    assert code == 0, text
    for number in (signal.SIGTERM, signal.SIGHUP):
        for again in range(3):
            run = f"{number.name}-{again}"
            stop_and_go_on(cli, WORKERS, run, "group", number)
            assert_same_end(cli, run, "whole")


def wait_for_text(process: Any, text: str) -> None:
    end = time.monotonic() + 120
    while text not in process.text():
        assert time.monotonic() < end, process.text()
        time.sleep(0.02)


# Dropout, workers, and states saved before validations alone.
STALLED = [
    *LONG,
    "trainer.accumulate_grad_batches=4",
    "model.dropout=0.1",
    "data.num_workers=2",
    "callbacks.checkpoint.every_n_steps=0",
]


@pytest.mark.parametrize("target", ["main", "group"])
def test_a_stop_waits_for_the_micro_batch_and_the_step_is_repeated_bitwise(
    cli: Any, target: str
) -> None:
    code, text = cli.run(*STALLED, "run_dir=whole")
    assert code == 0, text
    for step, number in ((4, signal.SIGTERM), (8, signal.SIGINT), (19, signal.SIGUSR1)):
        process = cli.start(
            *STALLED, "run_dir=stalled", "resume=auto", stall_at=step, stall_seconds=3
        )
        wait_for_text(process, "STALLED")
        sent = time.monotonic()
        send(process, target, number)
        wait_for_text(process, f"{number.name}: finishing this micro-batch, then saving")
        assert time.monotonic() - sent < 0.9
        assert process.wait() == (130 if number == signal.SIGINT else 143), process.text()
        assert process.text().count("STALLED") == 1  # of the three that are left of the step
        assert f"Everything up to step {step} is saved" in process.text()
        assert process.text().count("finishing this micro-batch") == 1
        assert process.survivors() == []
        assert cli.newest_step("stalled") == step
    code, text = cli.run(*STALLED, "run_dir=stalled", "resume=auto")
    assert code == 0, text
    assert_same_end(cli, "stalled", "whole")


def test_a_second_ctrl_c_ends_at_once_and_says_what_is_lost(cli: Any) -> None:
    process = cli.start(*STALLED, "run_dir=stalled", stall_at=8)
    wait_for_text(process, "STALLED")
    process.kill(signal.SIGINT)
    wait_for_text(process, "press Ctrl-C again to end at once")
    time.sleep(0.5)
    sent = time.monotonic()
    process.kill(signal.SIGINT)
    assert process.wait() == 130, process.text()
    assert time.monotonic() - sent < 2
    saved = f"step-{cli.newest_step('stalled'):08d}.ckpt"
    assert f"Nothing newer than {saved} was saved; training was at step 8" in process.text()
    assert process.survivors() == []


def test_signals_that_come_while_a_stopped_run_ends_change_nothing_and_print_no_traceback(
    cli: Any,
) -> None:
    """As `timeout` and schedulers send them; loading processes are ended meanwhile."""
    for again in range(3):
        run = f"again-{again}"
        process = cli.start(*WORKERS, f"run_dir={run}")
        wait_for_state(cli, run, 2, process)
        with contextlib.suppress(ProcessLookupError):
            for _ in range(200):
                os.killpg(process.pid, signal.SIGTERM)
                time.sleep(0.005)
        assert process.wait() == 143, process.text()
        assert "Traceback" not in process.text(), process.text()
        step = cli.newest_step(run)
        assert f"Everything up to step {step} is saved" in process.text()
        assert process.survivors() == []


def test_ctrl_c_before_the_first_step_promises_nothing(cli: Any) -> None:
    process = cli.start(*STALLED, "run_dir=early", stall_at=-1)
    wait_for_text(process, "Policy:")
    process.kill(signal.SIGINT)
    assert process.wait() == 130, process.text()
    assert "Nothing was trained yet" in process.text()
    assert "resume=auto" not in process.text()


def test_a_signal_before_training_ends_at_once(cli: Any) -> None:
    process = cli.start(*LONG, "run_dir=early")
    time.sleep(0.3)
    process.kill(signal.SIGTERM)
    assert process.wait() in (143, -signal.SIGTERM)
    assert process.survivors() == []


PARTS = {
    "reading": "minimind_dpo.data.store.prepare:_Builder.run",
    "storing": "minimind_dpo.data.store.prepare:_Builder.finish",
    "model": "minimind_dpo.run.fit:build_policy",
    "reference": "minimind_dpo.training.reference:PrecomputedReference._score",
    "answers": "minimind_dpo.evaluation.evaluate:draw_answers",
    "verdict": "minimind_dpo.run.verdict:RunVerdict._conclude",
    "export": "minimind_dpo.run.fit:export_weights",
    "files": "minimind_dpo.models.export:_write_model",
    "summary": "minimind_dpo.run.fit:write_model_card",
    "page": "minimind_dpo.run.summary:write_run_report",
}
WHOLE = [
    *LONG,
    "evaluate=default",
    "evaluate.prompts=6",
    "evaluate.max_new_tokens=4",
    "export.hf=true",
]


@pytest.mark.parametrize("part", PARTS)
def test_a_stop_in_any_part_of_a_run_ends_it_and_the_next_one_goes_on(cli: Any, part: str) -> None:
    code, text = cli.run(*WHOLE, "run_dir=whole", "data.cache_dir=whole-cache")
    assert code == 0, text
    for target, number in (
        ("main", signal.SIGTERM),
        ("group", signal.SIGINT),
        ("group", signal.SIGHUP),
    ):
        run = f"{target}-{number.name}"
        again = [*WHOLE, f"run_dir={run}", "resume=auto", f"data.cache_dir={run}-cache"]
        process = cli.start(*again, stall_in=PARTS[part], stall_seconds=4)
        wait_for_text(process, "STALLED")
        sent = time.monotonic()
        send(process, target, number)
        code = process.wait()
        print(f"{part} {run}: {code} after {time.monotonic() - sent:.2f} s")
        assert code in (128 + number, -number, 143), process.text()
        assert "Traceback" not in process.text(), process.text()
        assert process.survivors() == []
        code, text = cli.run(*again)
        assert code == 0, text
        assert_same_end(cli, run, "whole")
        assert cli.files(run) == cli.files("whole")
        ours, theirs = (cli.read_json(name, "summary.json") for name in (run, "whole"))
        assert ours["val"] == theirs["val"]


def test_a_time_limit_saves_and_a_resumed_run_goes_on(cli: Any) -> None:
    args = ["trainer.max_epochs=300", "run_dir=timed"]
    code, text = cli.run(*args, "trainer.max_time={seconds:2}")
    assert code == 0, text
    first = cli.weights("timed")
    code, text = cli.run(*args, "trainer.max_time={seconds:2}", "resume=auto")
    assert code == 0, text
    assert any(not torch.equal(first[n], w) for n, w in cli.weights("timed").items())
