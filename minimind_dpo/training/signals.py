"""Stopping on a signal without losing work.

Handlers set a flag. Ranks agree on it at the end of an optimizer step (a signal may reach one of
them alone), all save together, and all raise `Stopped`. Nothing that talks to other ranks runs
inside a handler: that is what hangs.

A step may take minutes, and Python runs handlers only between calls into torch, some of which take
long themselves. So a thread hears of signals as they come, and on one rank it gives up the step in
progress when `grace` seconds are over: until the optimizer moves the weights, the state of the
step before is all there. The thread saves it and ends the process; a resumed run repeats the step.
What costs nothing to give up (validation, sampled answers) is given up at once. Several ranks stop
between micro-batches only: one that left a collective would leave the others hanging in it.

SIGTERM, SIGUSR1   exit 143: what schedulers send, and their warning before it
SIGINT (Ctrl-C)    exit 130; a second one ends the process at once, by that signal. In a program
                   that calls `fit` itself it goes to that program's own handler
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import lightning as L

from minimind_dpo.exit_codes import INTERRUPTED, TERMINATED

log = logging.getLogger(__name__)

_HANDLED: Final = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")
_ONE_CALL: Final = 8.0  # seconds that a single call may keep Python from running a handler
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


class StopRequest:
    """What signals leave for the training loop.

    Args:
        grace: `guard.stop_grace`: seconds that a step in progress is given to end.

    Attributes:
        signum: The signal that came; 0 for none.
        patient: Whether somebody will look at the flag soon. Where nobody does (before training
            starts, after it has ended) the handler raises `Stopped` itself.
        give_up: Saves the steps before the one in progress.
        last_words: Says how the run ended.
        at_once: Ends what this process has started.
        step: Optimizer steps that are done.
        saved: The newest state that a resumed run can start from.
        saved_step: The optimizer steps it holds.
        speaks: Whether this process tells people; one of several ranks does.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self.signum = 0
        self.patient = False
        self.give_up: Callable[[], None] = lambda: None
        self.last_words: Callable[[Stopped], None] = lambda stopped: None
        self.at_once: Callable[[], None] = lambda: None
        self.step = self.saved_step = 0
        self.saved: Path | None = None
        self.speaks = True
        self._asked = 0.0
        self._told = self._raised = self._ending = False
        self._given_up_after: float | None = None
        # Whoever pops it first goes on: the main thread to the optimizer, or the other to the end.
        self._right: list[bool] = []
        self._process = os.getpid()
        self._ear: socket.socket | None = None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again after Lightning has put its own handlers there."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in _HANDLED:
            number = getattr(signal, name, None)  # Windows lacks some
            if number is not None:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def listen(self) -> None:
        """Hear of signals at once, in a thread, until `restore`; in the main thread."""
        if self._ear is None:
            self._ear, self._mouth = socket.socketpair()
            self._mouth.setblocking(False)
            self._ear.settimeout(0.1)
            signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, daemon=True, name="watch-signals").start()

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        if self._ear is not None and self._process == os.getpid():
            signal.set_wakeup_fd(-1)
            self._ear = None
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before.clear()

    def note_saved(self, path: Path, step: int) -> None:
        """A state of the run is on disk."""
        self.saved, self.saved_step = path, step
        self.step = max(self.step, step)

    def allow(self, grace: float) -> None:
        """From here on the run may end, `grace` seconds after it was asked to.

        What runs until `forbid` must neither write nor change what `give_up` saves.
        """
        self._right = [True]
        self._given_up_after = grace

    def forbid(self) -> None:
        """From here on a stop waits again; does not return if the run is ending."""
        if self._given_up_after is None:
            return
        self._given_up_after = None
        try:
            self._right.pop()
        except IndexError:
            while True:
                time.sleep(1.0)

    @contextlib.contextmanager
    def giving_up(self) -> Iterator[None]:
        """Within this, a stop comes at once: nothing is lost by it."""
        self.allow(0.0)
        try:
            yield
        finally:
            self.forbid()

    def agreed(self, trainer: L.Trainer, after: float = 0.0) -> bool:
        """Whether any rank was asked to stop, `after` seconds ago or more.

        To be called by all ranks at the same point.
        """
        asked = bool(self.signum) and time.monotonic() - self._asked >= after
        if trainer.world_size == 1:
            return asked
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def stopped(self, trainer: L.Trainer) -> Stopped:
        """The exception that ends all ranks, with the same exit code on each."""
        # A rank that got no signal itself answers 143 unless another one got Ctrl-C.
        interrupted = self.signum == signal.SIGINT
        if trainer.world_size > 1:
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        return Stopped(signal.SIGINT if interrupted else self.signum or signal.SIGTERM)

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
        if self._ending:
            # As shells expect of Ctrl-C: by the signal itself.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if self._ear is None and self._is_second(signum):
            # Nobody else would hear it: it is for those who had Ctrl-C before this run.
            signal.signal(signal.SIGINT, self._before.get(signum) or signal.default_int_handler)
            signal.raise_signal(signal.SIGINT)
            return
        self._note(signum)
        if not self.patient and not self._raised:
            self._raised = True
            raise Stopped(signum)

    def _is_second(self, signum: int) -> bool:
        again = signum == signal.SIGINT == self.signum
        return again and time.monotonic() - self._asked > _SAME_PRESS

    def _note(self, signum: int) -> None:
        self._asked = self._asked or time.monotonic()
        self.signum = self.signum or signum

    def _listen(self) -> None:
        """In a thread of its own, whatever the main one is doing."""
        known = [getattr(signal, name, None) for name in _HANDLED]
        pressed = 0.0
        while (ear := self._ear) is not None:
            with contextlib.suppress(TimeoutError):
                number = ear.recv(1)[0]
                now = time.monotonic()
                if number == signal.SIGINT and pressed and now - pressed > _SAME_PRESS:
                    self._end()
                if number == signal.SIGINT:
                    pressed = pressed or now
                if number in known and not self._told:
                    self._note(number)
                    self._tell()
            if self.signum:
                self._look()

    def _tell(self) -> None:
        self._told = True
        again = "; press Ctrl-C again to end at once" if self.signum == signal.SIGINT else ""
        what = "finishing this step, then saving" if self.patient else "ending"
        self._say(f"{signal.Signals(self.signum).name}: {what}{again}")

    def _look(self) -> None:
        """Give up what may be given up by now."""
        waited, after = time.monotonic() - self._asked, self._given_up_after
        if not self.patient:
            if waited > _ONE_CALL and not self._raised:
                self._leave()
        elif after is not None and waited >= after:
            with contextlib.suppress(IndexError):
                self._right.pop()
                self._leave()

    def _leave(self) -> NoReturn:
        """End the process from here: the main thread is in a call that nothing interrupts."""
        stopped = Stopped(self.signum)
        code = stopped.exit_code
        try:
            if self.patient:
                self.give_up()
            self.last_words(stopped)
        except Exception:
            code = 1
            traceback.print_exc()
        self.at_once()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _end(self) -> NoReturn:
        """A second Ctrl-C."""
        self.at_once()
        self._say(f"Ended at once. {self.kept()}.")
        self._ending = True
        if hasattr(signal, "pthread_kill"):
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(_SAME_PRESS)
        os._exit(INTERRUPTED)

    def _say(self, text: str) -> None:
        if self.speaks:
            os.write(2, f"\n{text}\n".encode())


def _be_deaf() -> None:
    """In a forked process: what it hears is not for the one that it came from."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_be_deaf)
