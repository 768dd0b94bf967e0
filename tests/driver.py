"""Runs the command line in forked processes, so that importing torch is paid once, not per run.

Reads a JSON request a line, answers with one: {"args", "env", "cwd", "out"} -> {"pid"}, with "err"
where errors go to a file of their own, and {"wait": pid} -> {"code"}. Every run leads a session of
its own. What runs is the console script's own `main`, in a process of its own that can be killed
like any other.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback

import tensorboard.summary  # noqa: F401 - imported here, and so once
import torch
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import minimind_dpo.run.fit
import minimind_dpo.run.sweep  # noqa: F401
from minimind_dpo import train


def start(request: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup may have started the tests
    out, err = (
        os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name in ("out", "err" if "err" in request else "out")
    )
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    tempfile.tempdir = None  # TMPDIR may be another
    limit = request.get("file_size_limit")
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if request.get("raise_at"):
        break_at(request["raise_at"])
    if request.get("stall_at"):
        stall_at(request["stall_at"], request.get("stall_seconds", 120))
    if request.get("stall_in"):
        stall_in(request["stall_in"], request.get("stall_seconds", 120))
    sys.argv = ["minimind-dpo", *request["args"]]
    # Lightning starts further ranks as `python -m <the module that is running>`.
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("minimind_dpo.train")
    code = 0
    try:
        train.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def break_at(step: int) -> None:
    """Let this process fail in its training."""
    from minimind_dpo.training.module import DPOModule

    before = DPOModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == step:
            raise ArithmeticError("the cause to be told")
        return before(self, batch, batch_idx)

    DPOModule.training_step = training_step


def stall_at(step: int, seconds: float) -> None:
    """Let the second micro-batch after a step take longer, in one call."""
    from minimind_dpo.training.module import DPOModule

    before = DPOModule.training_step

    def training_step(self, batch, batch_idx):
        loss = before(self, batch, batch_idx)
        if self.trainer.global_step == step and batch_idx % self.trainer.accumulate_grad_batches:
            print("STALLED", flush=True)
            time.sleep(seconds)
        return loss

    DPOModule.training_step = training_step


def stall_in(place: str, seconds: float) -> None:
    """Let the first call of `module:name` or `module:Class.name` take longer."""
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    before = getattr(owner, name)

    @functools.wraps(before)
    def stalled(*args, **kwargs):
        setattr(owner, name, before)
        print("STALLED", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:  # as work does, not as a sleep, which a signal may end
            time.sleep(0.05)
        return before(*args, **kwargs)

    setattr(owner, name, stalled)


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            answer = {"pid": start(request)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
