"""The whole configuration: the options of every package, and what belongs to the run alone.

A key's type, default and limits stand in the `options` module of the package that reads it; its
meaning and the reason of its default are in `conf/*.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

from minimind_dpo.data.options import DataOptions
from minimind_dpo.evaluation.options import EvaluateOptions, JudgeOptions
from minimind_dpo.evaluation.text import LANGUAGES
from minimind_dpo.models.options import ModelOptions
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.options.limits import COUNT, Choices, Range, keys_of
from minimind_dpo.report.options import SweepOptions
from minimind_dpo.training.options import (
    CallbacksOptions,
    GuardOptions,
    LoggerOptions,
    OptimizerOptions,
    ReferenceOptions,
    ScheduleOptions,
    TrainerOptions,
)


@dataclass
class ReportOptions:
    """The page of a run."""

    language: Annotated[str, Choices(*LANGUAGES)] = "en"


@dataclass
class ExportOptions:
    """What is written for others to load when training ends."""

    which: Annotated[str, Choices("last", "best")] = "last"
    hf: bool = True
    native: bool = True


@dataclass
class Config:
    """The whole configuration; `compose` and `to_config` return this."""

    name: str = "dpo"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 42
    output_dir: str = "outputs"
    run_dir: str | None = None
    resume: str | None = None
    resume_with_changes: bool = False
    log_level: Annotated[str, Choices("debug", "info", "warning", "error")] = "info"
    threads: Annotated[int | None, COUNT] = None
    report: ReportOptions = field(default_factory=ReportOptions)
    export: ExportOptions = field(default_factory=ExportOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optim: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    reference: ReferenceOptions = field(default_factory=ReferenceOptions)
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    logger: LoggerOptions = field(default_factory=LoggerOptions)
    callbacks: CallbacksOptions = field(default_factory=CallbacksOptions)
    guard: GuardOptions = field(default_factory=GuardOptions)
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)

    @property
    def holds_out(self) -> bool:
        """Whether pairs are held out of training, or are to be."""
        return bool(self.data.val) or self.data.val_fraction != 0


def schema_keys() -> Iterator[str]:
    """Every dotted key, leaves only: `loss.beta`."""
    return (key.name for key in keys_of(Config))
