"""Stopping on a signal without losing work.

A handler sets a flag. Training looks at it between micro-batches, saves the end of the last
optimizer step and raises `Stopped`; the resumed run repeats the micro-batches of a step that was
begun. A signal may reach one of several ranks alone: once a step, as its last micro-batch begins,
they ask each other, and all save and stop at its end; after a signal in that micro-batch, at the
end of the next step. Nothing that talks to other ranks runs inside a handler: that hangs.

The first signal is the one that counts. Later ones raise nothing, so that they interrupt neither
what is being saved nor loading processes that are being ended.

Python runs handlers between calls into torch, and a backward pass is one call. So a thread reads
signals as they come: it answers the first one, and ends the process at a second Ctrl-C. What is
saved is whole at any moment, since states are renamed into place.

SIGTERM, SIGHUP, SIGUSR1   exit 143: what schedulers and closed terminals send
SIGINT (Ctrl-C)            exit 130, a second one at once. In a program that calls `fit` itself the
                           second one goes to that program's own handler
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import lightning as L
from torch import nn

from minimind_dpo.exit_codes import INTERRUPTED, TERMINATED
from minimind_dpo.launch import STOP_SIGNALS, heeded_signals
from minimind_dpo.output import lead_nowhere
from minimind_dpo.training.agreement import ask_highest

_SAME_PRESS: Final = 0.3  # seconds in which a launcher may pass on a Ctrl-C that came by itself


class Stopped(BaseException):
    """The run was asked to stop and has saved what there was to save.

    No `Exception`, as KeyboardInterrupt is none: it may be raised anywhere, and whoever catches all
    that can go wrong while a file is read must not take it for a damaged file.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Of Ctrl-C, or of every other signal."""
        return INTERRUPTED if self.signum == signal.SIGINT else TERMINATED


class GivenUpError(Exception):
    """Answers that were being sampled were given up, since the run is to stop."""


class StopRequest:
    """What signals leave for the training loop.

    Attributes:
        signum: The signal that came; 0 for none.
        waits_for: What a stop waits for, since somebody will look at the flag after it. Empty
            where nobody does (before training starts, after it has ended): the handler raises
            `Stopped` itself.
        at_once: Ends what this process has started.
        step: Optimizer steps that are done.
        saved: The newest state that a resumed run can start from.
        saved_step: The optimizer steps it holds.
        speaks: Whether this process tells people; one of several ranks does.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.waits_for = ""
        self.at_once: Callable[[], None] = lambda: None
        self.step = self.saved_step = 0
        self.saved: Path | None = None
        self.speaks = True
        self._pressed = 0.0
        self._process = os.getpid()
        self._sockets: tuple[socket.socket, ...] = ()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again after Lightning has put its own handlers there."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in heeded_signals():
            self._before.setdefault(number, signal.signal(number, self._handle))

    def listen(self) -> None:
        """Answer signals at once, in a thread, until `restore`; in the main thread."""
        self._sockets = socket.socketpair()
        read, write = self._sockets
        write.setblocking(False)
        signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._answer, args=(read,), daemon=True, name="signals").start()

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        if self._sockets and self._process == os.getpid():
            signal.set_wakeup_fd(-1)
            self._sockets[1].close()  # which ends the thread
            self._sockets = ()
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before.clear()

    def note_saved(self, path: Path, step: int) -> None:
        """A state of the run is on disk."""
        self.saved, self.saved_step = path, step
        self.step = max(self.step, step)

    def ask(self, trainer: L.Trainer) -> Callable[[], Stopped | None]:
        """Ask all ranks whether to stop; to be called by all of them at the same point.

        Returns:
            Waits for the answer: what ends all ranks alike, if any was asked to stop by now.
        """
        order = [0, *STOP_SIGNALS]
        highest = ask_highest(trainer, order.index(self.signum))

        def answer() -> Stopped | None:
            signum = order[highest()]
            return Stopped(signum) if signum else None

        return answer

    @contextlib.contextmanager
    def giving_up(self, model: nn.Module) -> Iterator[None]:
        """Within this, a stop waits for one forward pass of the model, which is not trained.

        Raises:
            GivenUpError: A stop was asked for.
        """

        def look(*_: Any) -> None:
            if self.signum:
                raise GivenUpError

        hook = model.register_forward_pre_hook(look)
        try:
            yield
        finally:
            hook.remove()

    def kept(self) -> str:
        """What is saved and what is not, as a sentence."""
        if self.step == 0:
            return "Nothing was trained yet, so there is nothing to resume"
        if self.saved is None:
            return f"No state is saved: the {self.step} steps that were trained are lost"
        if self.saved_step == self.step:
            return f"Everything up to step {self.step} is saved ({self.saved.name})"
        return f"Nothing newer than {self.saved.name} was saved; training was at step {self.step}"

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        """In the main thread, between two lines of Python."""
        if os.getpid() != self._process:
            return  # a process that loads data, which inherited this and ends with the run
        _leave_closed_terminal()
        if not self._sockets and self._is_second_press(signum):
            # No thread answers it: it is for those who had Ctrl-C before this run.
            signal.signal(signal.SIGINT, self._before.get(signum) or signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)
            return
        if self.signum:
            return
        self.signum = signum
        if not self.waits_for:
            raise Stopped(signum)

    def _answer(self, read: socket.socket) -> None:
        """In a thread of its own, whatever the main one is doing."""
        told = False
        while received := read.recv(1):
            number = received[0]
            if self._is_second_press(number):
                self._end()
            if number in self._before and not told:
                told = True
                self._tell(number)

    def _is_second_press(self, signum: int) -> bool:
        if signum != signal.SIGINT:
            return False
        now = time.monotonic()
        first, self._pressed = self._pressed, self._pressed or now
        return first > 0 and now - first > _SAME_PRESS

    def _tell(self, signum: int) -> None:
        what = f"finishing {self.waits_for}, then saving" if self.waits_for else "ending"
        again = "; press Ctrl-C again to end at once" if signum == signal.SIGINT else ""
        self._say(f"{signal.Signals(signum).name}: {what}{again}")

    def _end(self) -> NoReturn:
        self.at_once()
        self._say(f"Ended at once. {self.kept()}.")
        os._exit(INTERRUPTED)

    def _say(self, text: str) -> None:
        if self.speaks:
            with contextlib.suppress(OSError):  # a terminal that was closed
                os.write(2, f"\n{text}\n".encode())


def _leave_closed_terminal() -> None:
    """Where a terminal was closed, which SIGHUP tells, each write to it would fail the run."""
    for descriptor in (1, 2):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:
                lead_nowhere(descriptor)


def _forget_thread() -> None:
    """In a forked process: its signals are not answered by the one that it came from."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)
