"""Ranks of one run agree: on what rank 0 decides, on what they were started with, on a number."""

from __future__ import annotations

import atexit
import functools
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Callback

from minimind_dpo import launch
from minimind_dpo.training.lightning_seams import rank_timeout

_T = TypeVar("_T")


class RanksDisagreeError(ValueError):
    """Ranks of one run were started with different settings."""


def decided(decide: Callable[[], _T], timeout: float) -> _T:
    """What rank 0 decides, on all ranks that torchrun or srun started; elsewhere, what this does.

    Raises:
        Exception: What `decide` raised on rank 0, on all of them.
    """
    if (launch.world_size() or 1) == 1:
        return decide()
    outcome: tuple[Any, Exception | None] = (None, None)
    if launch.rank() == 0:
        try:
            outcome = decide(), None
        except (ValueError, OSError) as error:  # wrong input, or a folder that cannot be made
            outcome = None, error
    value, failure = _share(outcome, timeout)
    if failure is not None:
        raise failure
    return value


def _share(value: Any, timeout: float) -> Any:
    """Rank 0's value on all ranks."""
    if not torch.distributed.is_initialized():
        _join(timeout)
    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def _join(timeout: float) -> None:
    """Make the group of the ranks that torchrun or srun started; it ends with the process."""
    slurm = SLURMEnvironment()
    if not launch.started_by_torchrun():
        # Both put what they find into the environment, where torch looks for it.
        _ = slurm.main_address, slurm.main_port
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(seconds=timeout),
        rank=launch.rank(),
        world_size=launch.world_size() or 1,
    )
    # Lightning does this for groups that it makes itself.
    atexit.register(torch.distributed.destroy_process_group)


def ask_highest(trainer: L.Trainer, value: int) -> Callable[[], int]:
    """Ask for the highest value among all ranks; to be called by all of them at the same point.

    It is a fact of the hosts, which talk to each other beside their devices: none is waited for.

    Returns:
        Waits for the other hosts' answers.
    """
    if trainer.world_size == 1:
        return lambda: value
    told = torch.tensor(int(value))
    question = torch.distributed.all_reduce(
        told, torch.distributed.ReduceOp.MAX, group=_hosts(trainer), async_op=True
    )

    def answer() -> int:
        question.wait()
        return int(told)

    return answer


def _hosts(trainer: L.Trainer) -> torch.distributed.ProcessGroup:
    """The group of all ranks in which values of the CPU are reduced."""
    group = torch.distributed.group.WORLD
    assert group is not None
    if "gloo" in str(torch.distributed.get_backend_config(group)):
        return group
    return _beside(group, rank_timeout(trainer))


@functools.cache
def _beside(
    group: torch.distributed.ProcessGroup, timeout: timedelta
) -> torch.distributed.ProcessGroup:
    """Another group of the ranks of one whose backend (NCCL) knows devices alone."""
    return torch.distributed.new_group(backend="gloo", timeout=timeout)


class Agreement(Callback):
    """Ranks compare what they were started with before anything is trained.

    Args:
        settings: Dotted keys and values that have to be equal on all ranks.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare with rank 0, on all ranks alike.

        Raises:
            RanksDisagreeError: Naming the keys.
        """
        if trainer.world_size == 1:
            return
        mine = json.dumps(self.settings, sort_keys=True, default=str)
        texts = [trainer.strategy.broadcast(mine, src=rank) for rank in range(trainer.world_size)]
        first, *rest = (json.loads(text) for text in texts)
        found = [
            f"{key} is {other.get(key)!r} on rank {rank}, {first.get(key)!r} on rank 0"
            for rank, other in enumerate(rest, start=1)
            for key in sorted({*first, *other})
            if first.get(key) != other.get(key)
        ]
        if found:
            raise RanksDisagreeError(
                f"ranks of one run have different settings: {'; '.join(found)}. Give all of them "
                "the same command line, environment and files"
            )
