"""A clock that takes the device's own matrix rate around what it times, and its memory.

CPU time of the process is what repeats on a machine that others use too; wall time is what a GPU
is measured by. The rate of a plain matrix product is taken right before and right after each timed
part, by the same clock, so that a slower machine is slower in both.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from minimind_dpo.kernels.cpu_matmul import product


class Clock:
    """Adds up named parts.

    Args:
        device: `cpu` or `cuda`.
        dtype: Number format of the matrix product.
        size: Edge of its square matrices.

    Attributes:
        cpu: Seconds of CPU time, by part.
        wall: Seconds on the wall, by part.
        rates: FLOP/s of the matrix product before and after each time a part ran, by part.
    """

    def __init__(self, device: str, dtype: torch.dtype, size: int) -> None:
        self.device = device
        self.dtype = dtype
        self.size = size
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.rates: dict[str, list[float]] = {}
        self._started: tuple[float, float, float] | None = None

    def start(self) -> None:
        """Begin a part."""
        before = matmul_rate(self.device, self.dtype, self.size)
        self._started = before, time.process_time(), time.perf_counter()

    def stop(self, part: str) -> None:
        """End it, under this name."""
        assert self._started is not None, "stop without start"
        synchronize(self.device)
        before, cpu, wall = self._started
        self.cpu[part] = self.cpu.get(part, 0.0) + time.process_time() - cpu
        self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall
        self._started = None
        after = matmul_rate(self.device, self.dtype, self.size)
        self.rates.setdefault(part, []).extend((before, after))

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Time a block."""
        self.start()
        yield
        self.stop(part)

    @property
    def cost(self) -> dict[str, float]:
        """Seconds by part, as this device is measured: of the CPU, or on the wall for a GPU."""
        return self.cpu if self.device == "cpu" else self.wall


def synchronize(device: str) -> None:
    """Wait for what the GPU still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, dtype: torch.dtype, size: int, repeats: int = 5) -> float:
    """FLOP/s of a product of square matrices, after one to warm up.

    On a CPU the best of some repeats, by CPU time, by the faster of `torch.mm` and of the library
    that this process has chosen (`minimind_dpo.kernels.cpu_matmul`): the machine's rate, whichever
    of them a way uses. On a GPU the median of some tens in a row, between events of its own.
    """
    # Random numbers: a GPU clocks higher on constant ones.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if device == "cuda":
        return 2 * size**3 / _median_seconds(lambda: torch.mm(left, right), repeats)
    now = time.process_time
    best = math.inf
    for multiply in (torch.mm, product):
        for repeat in range(repeats + 1):
            start = now()
            multiply(left, right)
            if repeat:
                best = min(best, now() - start)
    return float(2 * size**3 / max(best, 1e-9))


def _median_seconds(work: Callable[[], object], repeats: int, times: int = 10) -> float:
    """Of one of ten in a row, by the GPU's own clock: without what a launch and a wait cost."""
    seconds = []
    for _ in range(repeats + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000 / times)
    return median(seconds[1:])


def peak_memory(device: str) -> int:
    """Most bytes since this process started: allocated on the GPU, else resident; 0 if unknown."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        # NOTE: not ru_maxrss, which a process inherits from the one that started it.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_average() -> float:
    """Processes that wanted a core, averaged over the last minute; 0 where it is not told."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
