"""One way, once, in a process of its own: `python -m speed.worker REQUEST.json RESULT.json`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from minimind_dpo.kernels.cpu_matmul import choose_library
from minimind_dpo.kernels.keep_memory import keep_freed_memory
from speed.arithmetic import Dimensions, executed_flops, layout_passes, useful_flops
from speed.clock import Clock, load_average, peak_memory, synchronize
from speed.notebook import notebook
from speed.peer_trl import trl
from speed.request import Request, Result, Skipped, base_of, read_request, warm_of, write
from speed.through_trainer import through_trainer
from speed.ways import Run, ahead, online
from speed.workload import open_store

WAYS: dict[str, Callable[[Request, Clock], Run]] = {
    "notebook": notebook,
    "dynamic": lambda request, clock: online(request, clock, "padded"),
    "packed": lambda request, clock: online(request, clock, "packed"),
    "shared": lambda request, clock: online(request, clock, "prefix_shared"),
    "cold": lambda request, clock: ahead(request, clock, timed=True),
    "warm": lambda request, clock: ahead(request, clock, timed=False),
    "split-cold": lambda request, clock: ahead(request, clock, timed=True, split=True),
    "split-warm": lambda request, clock: ahead(request, clock, timed=False, split=True),
    "warm-trainer": through_trainer,
    "trl": lambda request, clock: trl(request, clock, "online"),
    "trl-liger": lambda request, clock: trl(request, clock, "online", liger=True),
    "trl-cold": lambda request, clock: trl(request, clock, "cold"),
    "trl-warm": lambda request, clock: trl(request, clock, "warm"),
    "trl-split": lambda request, clock: trl(request, clock, "online", split=True),
    "trl-split-cold": lambda request, clock: trl(request, clock, "cold", split=True),
    "trl-split-warm": lambda request, clock: trl(request, clock, "warm", split=True),
}
WARM = ("warm", "split-warm", "warm-trainer", "trl-warm", "trl-split-warm")
"""Ways whose work leaves the reference out."""


def measure(request: Request) -> list[Result]:
    """Run one way and say what it took; a cold way's steps are what its warm way is."""
    torch.set_num_threads(request.threads)
    if request.allocator:
        keep_freed_memory()
    choose_library()
    torch.manual_seed(request.seed)
    clock = Clock(request.device, getattr(torch, request.precision), request.matmul_size)
    idle = peak_memory(request.device)
    warm = warm_of(request.way)
    try:
        run = WAYS[base_of(request.way)](request, clock)
    except Skipped as reason:
        return [_skipped(request, way, reason) for way in (request.way, warm) if way]
    results = [_result(request, run, clock, request.way, list(clock.cpu))]
    if warm:
        results.append(_result(request, run, clock, warm, ["steps"]))
    for result in results:
        result.idle_bytes = idle
    if request.profile and run.once_more is not None:
        Path(request.profile).write_text(_profiled(request, run.once_more), encoding="utf-8")
    return results


def _skipped(request: Request, way: str, reason: Skipped) -> Result:
    return Result(way, request.round, request.precision, skipped=str(reason))


def _result(request: Request, run: Run, clock: Clock, way: str, parts: list[str]) -> Result:
    """What the named parts of a run took."""
    cost = sum(clock.cost[part] for part in parts)
    result = Result(
        way,
        request.round,
        request.precision,
        pairs=len(request.timed),
        cpu_seconds=sum(clock.cpu[part] for part in parts),
        wall_seconds=sum(clock.wall[part] for part in parts),
        pass_share=sum(clock.cost[part] for part in parts if part == "pass") / max(cost, 1e-9),
        matmul_rates=[rate for part in parts for rate in clock.rates[part]],
        peak_bytes=peak_memory(request.device),
        first_loss=run.first.loss,
        first_grad_norm=run.first.grad_norm,
        load_average=load_average(),
    )
    _count(request, run, result)
    return result


def _count(request: Request, run: Run, result: Result) -> None:
    """Fill in tokens and arithmetic."""
    lengths = np.array(open_store(request.store).lengths)[request.timed]
    dims = Dimensions.of(run.policy)
    layout, batch = base_of(result.way), request.batch_size
    reference = layout not in WARM
    if layout.startswith("trl"):
        batch = request.micro_batch if "split" in layout else batch
        layout = "dynamic"
    elif layout in ("cold", "split-cold", *WARM):
        layout = "shared"
    passes = layout_passes(layout, lengths, batch, request.max_length)
    result.real_tokens = int((2 * lengths[:, 0] + lengths[:, 1] + lengths[:, 2]).sum())
    result.tokens_run = passes.tokens
    result.useful_flops = useful_flops(dims, lengths, reference)
    result.executed_flops = executed_flops(
        dims, passes, passes if reference else None, head_again=layout != "notebook"
    )


def _profiled(request: Request, step: Callable[[], object]) -> str:
    """The ten operations that one more step spends most of its own time in."""
    activities = [ProfilerActivity.CPU]
    key = "self_cpu_time_total"
    if request.device == "cuda":
        activities.append(ProfilerActivity.CUDA)
        key = "self_device_time_total"
    with profile(activities=activities) as profiler:
        step()
        synchronize(request.device)
    return str(profiler.key_averages().table(sort_by=key, row_limit=10))


def main() -> None:
    """Measure what the first file asks and write the second."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    asked, answered = map(Path, sys.argv[1:3])
    write(answered, measure(read_request(asked)))


if __name__ == "__main__":
    main()
