"""How often ranks ask each other for a stop between the micro-batches of a step."""

from __future__ import annotations

import time
from typing import Final

import lightning as L


class Looks:
    """Where in a step several ranks ask each other for a stop: each time costs all of them a wait.

    At the end of a step they always do. Between micro-batches they do after the 16th, 32nd and so
    on of an epoch; after each one where those of the step before took a second or more, and in the
    first two steps, when nothing is known yet. All ranks decide alike, or they would hang.
    """

    EVERY: Final = 16
    SLOW: Final = 1.0

    def __init__(self) -> None:
        self._slow = True
        self._micro_batches = 1
        self._began: float | None = None

    def between_micro_batches(self, trainer: L.Trainer, batch_idx: int) -> bool:
        """Whether to ask after this one, which does not end a step."""
        self._micro_batches += 1
        return trainer.world_size == 1 or self._slow or (batch_idx + 1) % self.EVERY == 0

    def end_step(self, trainer: L.Trainer) -> None:
        """Learn of the step that has ended; to be called by all ranks."""
        now = time.monotonic()
        # What follows a step (validation, saving) counts for the next one: it may only look slower.
        if trainer.world_size > 1 and self._micro_batches > 1 and self._began is not None:
            slow = now - self._began >= self.SLOW * self._micro_batches
            self._slow = trainer.strategy.reduce_boolean_decision(slow, all=False)
        self._began, self._micro_batches = now, 1
