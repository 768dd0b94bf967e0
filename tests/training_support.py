"""What tests of training share."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers.logger import Logger


class Memory(Logger):
    """Keeps what is logged, at full precision."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.setdefault(int(step or 0), {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...
