"""What a signal does to the process that gets it, wherever it is at that moment."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf

from minimind_dpo.config.compose import compose
from minimind_dpo.models.tokenizers import need_tokenizer
from minimind_dpo.run import fit as fit_module
from minimind_dpo.training.distributed import RankGuard
from minimind_dpo.training.resume.callback import ResumeCheckpoint
from minimind_dpo.training.resume.checkpoint_io import AtomicCheckpointIO, read_header
from minimind_dpo.training.signals import Stopped, StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")


@pytest.fixture
def request_() -> Iterator[StopRequest]:
    # A shell that starts the tests in the background has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = StopRequest()
    stop.install()
    yield stop
    stop.restore()
    signal.signal(signal.SIGINT, before)


def stop_me(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_while_a_tokenizer_loads_is_no_damaged_tokenizer(
    request_: StopRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(tf.AutoTokenizer, "from_pretrained", stop_me)
    with pytest.raises(Stopped, match="SIGTERM"):
        need_tokenizer(str(tmp_path), None)


def test_a_stop_while_a_state_is_read_is_no_damaged_state(
    request_: StopRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save({"a": 1}, tmp_path / "state.ckpt")
    monkeypatch.setattr(torch, "load", stop_me)
    with pytest.raises(Stopped, match="SIGTERM"):
        read_header(tmp_path / "state.ckpt")


def test_a_second_ctrl_c_is_the_callers_where_nobody_listens(request_: StopRequest) -> None:
    request_.waits_for = "this step"
    os.kill(os.getpid(), signal.SIGINT)
    assert request_.signum == signal.SIGINT
    os.kill(os.getpid(), signal.SIGINT)  # one press, passed on by a launcher as well
    time.sleep(0.35)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_after_the_first_raise_nothing(request_: StopRequest) -> None:
    """Raised in a `__del__` of what ends meanwhile, it would be a traceback."""
    request_.waits_for = "this step"
    os.kill(os.getpid(), signal.SIGTERM)
    request_.waits_for = ""
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert request_.signum == signal.SIGTERM


@pytest.mark.parametrize("end", ["failure", "end"])
def test_a_signal_while_a_thread_writes_the_last_state_waits_for_it(
    end: str, tmp_path: Path
) -> None:
    io, written, heard = AtomicCheckpointIO(background=True), threading.Event(), []
    callback = ResumeCheckpoint(tmp_path)
    callback.stop.waits_for = "this step"
    strategy = SimpleNamespace(checkpoint_io=io)
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=1)

    def write() -> None:
        assert written.wait(20)
        heard.append(callback.stop.waits_for)

    io.writer.do(write)
    threading.Timer(0.05, written.set).start()
    if end == "end":
        callback.on_train_end(trainer, SimpleNamespace())  # type: ignore[arg-type]
    else:
        callback.on_exception(trainer, SimpleNamespace(), ValueError())  # type: ignore[arg-type]
    assert (heard, callback.stop.waits_for) == (["this step"], "")


def test_a_closed_terminal_stops_a_run_and_fails_no_write(request_: StopRequest) -> None:
    request_.waits_for = "this step"
    kept, free = os.dup(2), os.dup(2)
    os.close(free)
    master, terminal = os.openpty()
    os.dup2(terminal, 2)
    os.close(terminal)
    os.close(master)
    try:
        with pytest.raises(OSError, match="Input/output"):
            os.write(2, b"a line")
        os.kill(os.getpid(), signal.SIGHUP)
        os.write(2, b"a line")
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(free)  # none is left open
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert request_.signum == signal.SIGHUP


def test_nohup_keeps_a_run_alive() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    try:
        stop.install()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signum == 0
    finally:
        stop.restore()
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("fails", [False, True])
def test_fit_from_python_gives_the_signals_back(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def train(config: Any, stop: StopRequest, ranks: RankGuard, *_: Any) -> dict[str, Any]:
        # As Lightning's own, which it puts there before callbacks put theirs.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.install()
        if fails:
            raise Stopped(signal.SIGTERM)
        return {}

    monkeypatch.setattr(fit_module, "_fit", train)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    config = compose(["data.train=pairs.jsonl", "model.path=model"])
    if fails:
        with pytest.raises(Stopped):
            fit_module.fit(config)
    else:
        fit_module.fit(config)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
