"""Checkpoints written by a thread while training goes on: copies of tensors, and jobs in order.

    main thread   copies of the state, which the device makes between two steps; no wait
    writer        waits for the copies -> write, fsync, read back, rename -> what may follow it

Jobs run one after the other. Once one has failed those behind it are left out, so that no older
state is deleted, until the failure has been raised in the main thread.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class BackgroundWriter:
    """Runs jobs in a thread, in their order."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._failure: Exception | None = None

    @property
    def idle(self) -> bool:
        """Whether all jobs are done, and well."""
        return self._failure is None and all(job.done() for job in self._jobs)

    def then(self, action: Callable[[], Any]) -> None:
        """Do something once all jobs before it are done; never if one fails."""
        if self.idle:
            action()
        else:
            self.do(action)

    def do(self, job: Callable[[], Any]) -> None:
        """Run a job behind those before it."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "write-checkpoints")
        self._jobs.append(self._pool.submit(self._run, job))

    def _run(self, job: Callable[[], Any]) -> None:
        if self._failure is None:
            try:
                job()
            except Exception as error:
                self._failure = error

    def raise_failure(self) -> None:
        """Raise what a job has raised, once."""
        if self._failure is not None:
            self.settle()  # jobs behind it are left out
            failure, self._failure = self._failure, None
            raise failure

    def wait(self) -> None:
        """Until all jobs are done.

        Raises:
            Exception: What one of them has raised.
        """
        self.settle()
        self.raise_failure()

    def settle(self) -> None:
        """Until all jobs are done; what one of them has raised is kept."""
        for job in self._jobs:
            job.result()
        self._jobs = []


def tensors_of(state: Any) -> Iterator[Tensor]:
    """Those of a nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for item in state.values() if isinstance(state, dict) else state:
            yield from tensors_of(item)


def is_on_cuda(state: Any) -> bool:
    """Whether any tensor of a nested state is."""
    return any(tensor.is_cuda for tensor in tensors_of(state))


def set_aside(state: dict[str, Any]) -> tuple[dict[str, Any], Callable[[], None]]:
    """A copy of a nested state in main memory, page-locked for what comes from a GPU.

    Tensors that are one stay one, as tied embeddings are.

    Returns:
        The copy, and what waits until it is whole. Nothing that is launched on the device later
        can change it.
    """
    copies: dict[Any, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            storage, start = value.untyped_storage()._cdata, value.storage_offset()
            place = (storage, start, value.dtype, value.shape, value.stride())
            if place not in copies:
                tensor = value.detach()
                copies[place] = (
                    tensor.to("cpu", non_blocking=True) if tensor.is_cuda else tensor.clone()
                )
            return copies[place]
        if isinstance(value, dict):
            other = copy.copy(value)  # its type and attributes, such as a state dict's versions
            other.update({key: copied(item) for key, item in value.items()})
            return other
        if type(value) in (list, tuple):
            return type(value)(copied(item) for item in value)
        return value

    result = copied(state)
    if not is_on_cuda(state):
        return result, _nothing
    event = torch.cuda.Event()
    event.record()
    return result, event.synchronize


def _nothing() -> None:
    """The copy is whole already."""
