"""What a user may set about training: optimizer, schedule, reference, trainer, callbacks, guard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from minimind_dpo.options.limits import (
    AUTO_OR_SWITCH,
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Choices,
    Form,
    Range,
)
from minimind_dpo.options.problem import Problem, package_problems
from minimind_dpo.training.option_values import (
    are_betas,
    are_devices,
    are_targets,
    is_amount,
    is_dev_run,
    is_interval,
    is_sampling_time,
    is_time,
    is_warn_or_switch,
)

_HALF_WEIGHTS: Final = {
    name: (
        "updates of DPO's size vanish in half-precision weights",
        f"Use {mixed}: half-precision arithmetic on float32 weights.",
    )
    for name, mixed in (
        ("bf16-true", "bf16-mixed"),
        ("16-true", "16-mixed"),
        ("transformer-engine", "bf16-mixed"),
    )
}
_SHARDED: Final = dict.fromkeys(
    ("fsdp", "deepspeed"),
    (
        "it shards weights, but resume states and gradient norms here are those of whole weights",
        "Use ddp.",
    ),
)
STRATEGIES: Final = (
    "auto",
    "single_device",
    "ddp",
    "ddp_find_unused_parameters_false",
    "ddp_find_unused_parameters_true",
)


_EXTRA: Final = Form(
    are_targets,
    "a list of mappings, each with _target_",
    "For example [{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss}].",
)
_AMOUNT: Final = Form(is_amount, "a number of batches, a share from 0.0 to 1.0, or null")


@dataclass
class OptimizerOptions:
    """AdamW (Loshchilov and Hutter 2019). `conf/optim` says what each key means."""

    lr: Annotated[float, POSITIVE] = 5e-7
    betas: Annotated[
        list[float],
        Form(are_betas, "two numbers, at least 0 and below 1"),
    ] = field(default_factory=lambda: [0.9, 0.999])
    eps: Annotated[float, POSITIVE] = 1e-8
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    decay_all: bool = False
    fused: Annotated[Any, AUTO_OR_SWITCH] = "auto"


@dataclass
class ScheduleOptions:
    """How the learning rate moves; `training.optim` has the formulas."""

    name: Annotated[str, Choices("cosine", "linear", "constant", "notebook")] = "cosine"
    warmup_steps: Annotated[int | None, NOT_NEGATIVE] = None
    warmup_ratio: Annotated[float | None, SHARE] = None
    min_lr_ratio: Annotated[float, Range(0, 1)] = 0.1


@dataclass
class ReferenceOptions:
    """The frozen reference and how its log-probs are had."""

    path: str | None = None
    mode: Annotated[str, Choices("precomputed", "online", "none")] = "precomputed"
    dtype: Annotated[str | None, Choices("float32", "float64", "bfloat16", "float16")] = None
    batch_tokens: Annotated[int | None, COUNT] = None


@dataclass
class TrainerOptions:
    """Keywords of `lightning.pytorch.Trainer`, by their own names, where a run has a choice."""

    accelerator: Annotated[str, Choices("auto", "cpu", "gpu", "cuda", "mps", "tpu")] = "auto"
    strategy: Annotated[str, Choices(*STRATEGIES, refused=_SHARDED)] = "auto"
    devices: Annotated[
        Any,
        Form(are_devices, "a number of devices, a list of their indices ([0,2]), -1 or auto"),
    ] = 1
    num_nodes: Annotated[int, COUNT] = 1
    precision: Annotated[
        Any, Choices("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", refused=_HALF_WEIGHTS)
    ] = "32-true"
    fast_dev_run: Annotated[
        Any,
        Form(is_dev_run, "true, false or a number of batches"),
    ] = False
    max_epochs: Annotated[int | None, Range(-1)] = 1
    min_epochs: Annotated[int | None, NOT_NEGATIVE] = None
    max_steps: Annotated[int, Range(-1)] = -1
    min_steps: Annotated[int | None, NOT_NEGATIVE] = None
    max_time: Annotated[
        Any, Form(is_time, "DD:HH:MM:SS (two hours: 00:02:00:00), or {hours:2,minutes:30}")
    ] = None
    limit_train_batches: Annotated[Any, _AMOUNT] = None
    limit_val_batches: Annotated[Any, _AMOUNT] = None
    val_check_interval: Annotated[
        Any,
        Form(
            is_interval,
            "optimizer steps (1 or more), a share of an epoch (up to 1.0) or DD:HH:MM:SS",
        ),
    ] = 0.25
    check_val_every_n_epoch: Annotated[int | None, COUNT] = 1
    log_every_n_steps: Annotated[int | None, COUNT] = None
    enable_progress_bar: bool = True
    enable_model_summary: bool = False
    accumulate_grad_batches: Annotated[int, COUNT] = 1
    gradient_clip_val: Annotated[float | None, NOT_NEGATIVE] = 1.0
    gradient_clip_algorithm: Annotated[str, Choices("norm", "value")] = "norm"
    deterministic: Annotated[
        Any,
        Form(is_warn_or_switch, "true, false, warn or null"),
    ] = None
    benchmark: bool | None = None
    inference_mode: bool = True
    profiler: Annotated[str | None, Choices("simple", "advanced", "pytorch", "xla")] = None
    detect_anomaly: bool = False

    def __post_init__(self) -> None:
        # Lightning's older spellings, so that the rest of the program compares with one name only.
        older = {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"}
        self.precision = older.get(str(self.precision), str(self.precision))


@dataclass
class LoggerOptions:
    """Where curves go. `conf/logger` says what each key means."""

    name: Annotated[str, Choices("tensorboard", "csv", "wandb", "swanlab", "none")] = "tensorboard"
    options: dict[str, Any] = field(default_factory=dict)
    extra: Annotated[Any, _EXTRA] = field(default_factory=list)


@dataclass
class CheckpointOptions:
    """When resume state is saved and what is kept."""

    every_n_steps: Annotated[int, NOT_NEGATIVE] = 100
    save_top_k: Annotated[int, Range(-1)] = 1
    monitor: str = "val/loss"
    mode: Annotated[str, Choices("min", "max")] = "min"
    save_last: bool = True


@dataclass
class SamplesOptions:
    """Answers to fixed prompts, logged as text."""

    enabled: bool = True
    prompts: list[str] | None = None
    max_new_tokens: Annotated[int, COUNT] = 128
    temperature: Annotated[float, NOT_NEGATIVE] = 0.7
    every: Annotated[Any, Form(is_sampling_time, "val, a number of optimizer steps, or null")] = (
        None
    )


@dataclass
class MicroBatchOptions:
    """Printing and exporting counted in micro-batches, as the notebook does."""

    log_every: Annotated[int, NOT_NEGATIVE] = 0
    export_every: Annotated[int, NOT_NEGATIVE] = 0


@dataclass
class CallbacksOptions:
    """What watches a run."""

    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    samples: SamplesOptions = field(default_factory=SamplesOptions)
    micro_batches: MicroBatchOptions = field(default_factory=MicroBatchOptions)
    progress: Annotated[str, Choices("auto", "rich", "plain", "none")] = "auto"
    weights_changed: bool = True
    judge: Annotated[str, Choices("none", "demo")] = "none"
    extra: Annotated[Any, _EXTRA] = field(default_factory=list)


@dataclass
class GuardOptions:
    """When a run that goes wrong is stopped."""

    check_model: bool = True
    max_bad_steps: Annotated[int, COUNT] = 10
    rank_timeout: Annotated[float, POSITIVE] = 1800.0


def schedule_problems(options: ScheduleOptions) -> Iterator[Problem]:
    """Warmup given twice, or where there can be none."""
    if options.warmup_steps is not None and options.warmup_ratio:
        why = f"excludes schedule.warmup_ratio={options.warmup_ratio:g}"
        yield Problem("schedule.warmup_steps", why, "Give one of them.", options.warmup_steps)
    for key in ("warmup_steps", "warmup_ratio"):
        if options.name == "notebook" and (getattr(options, key) or 0) > 0:
            why = f"has no warmup, but schedule.{key} is above 0"
            yield Problem("schedule.name", why, f"Set schedule.{key}=0.", "notebook")


def end_problems(trainer: TrainerOptions, schedule: ScheduleOptions) -> Iterator[Problem]:
    """A schedule that counts to an end in a run that has none but its time."""
    if any(bound not in (None, -1) for bound in (trainer.max_epochs, trainer.max_steps)):
        return
    if schedule.name != "constant":
        why = "counts to the last step, which trainer.max_time does not tell"
        fix = "Give trainer.max_epochs or trainer.max_steps, or use schedule.name=constant."
        yield Problem("schedule.name", why, fix, schedule.name)
    elif schedule.warmup_ratio:
        why = "is a share of the steps, whose number trainer.max_time does not tell"
        fix = "Give schedule.warmup_steps instead."
        yield Problem("schedule.warmup_ratio", why, fix, schedule.warmup_ratio)


def trainer_problems(options: TrainerOptions) -> Iterator[Problem]:
    """A run without an end or without a step."""
    bounds = (options.max_epochs, options.max_steps)
    if all(bound in (None, -1) for bound in bounds) and options.max_time is None:
        why = "leaves the run without an end"
        fix = "Give trainer.max_epochs, trainer.max_steps or trainer.max_time."
        yield Problem("trainer.max_epochs", why, fix, options.max_epochs)
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if is_amount(getattr(options, key)) and getattr(options, key) == 0:
            yield Problem(f"trainer.{key}", "trains nothing", value=0)


def logger_problems(options: LoggerOptions) -> Iterator[Problem]:
    """A logger whose package is not installed."""
    if options.name in ("wandb", "swanlab"):
        yield from package_problems("logger", options.name, options.name, options.name)
