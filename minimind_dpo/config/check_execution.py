"""How a run is carried out: precision, lengths, devices, compilation, callbacks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from minimind_dpo.config.check_values import HALF, choice_problem, is_number, package_problems
from minimind_dpo.config.compose import Problem
from minimind_dpo.config.schema import Config

PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed", "64-true")
_DDP: Final = ("ddp",)
_UNUSED: Final = ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
STRATEGIES: Final = ("auto", "single_device", *(name + end for name in _DDP for end in _UNUSED))
_TIME: Final = re.compile(r"\d+:\d\d:\d\d:\d\d")
_TIME_UNITS: Final = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds")

# Keywords of Lightning's Trainer that have one value here: why, and what to do instead.
_FIXED: Final[dict[str, tuple[Any, str, str]]] = {
    "overfit_batches": (
        0,
        "would replace the sampler that plans whole optimizer steps",
        "Use trainer.limit_train_batches=N data.shuffle=false.",
    ),
    "use_distributed_sampler": (
        False,
        "would split pairs over ranks twice",
        "Leave it false.",
    ),
    "barebones": (
        False,
        "forbids the logging and checkpoints that a run has",
        "Leave it false.",
    ),
    "reload_dataloaders_every_n_epochs": (
        0,
        "is not needed: each epoch has its own order",
        "Leave it 0.",
    ),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can train on.

    Attributes:
        cuda: CUDA devices.
        mps: Whether there is Apple's.
        onednn: Whether this build of torch has the library oneDNN.
    """

    cuda: int
    mps: bool
    onednn: bool = True

    @classmethod
    def detect(cls) -> Machine:
        """Ask torch."""
        import torch

        return cls(
            cuda=torch.cuda.device_count(),
            mps=torch.backends.mps.is_available(),
            onednn=torch.backends.mkldnn.is_available(),
        )


def precision_problems(config: Config) -> Iterator[Problem]:
    """Names that are unknown, and half-precision weights."""
    precision = config.trainer.precision
    if precision in ("bf16-true", "16-true") or precision.startswith("transformer-engine"):
        mixed = "16-mixed" if precision == "16-true" else "bf16-mixed"
        fix = f"Use {mixed}: half-precision arithmetic on float32 weights."
        yield Problem("trainer.precision", f"is refused: {HALF}", fix, precision)
    elif precision not in PRECISIONS:
        yield choice_problem("trainer.precision", precision, PRECISIONS)


def _is_time(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(
            unit in _TIME_UNITS and is_number(amount) and amount >= 0
            for unit, amount in value.items()
        )
    return isinstance(value, str) and _TIME.fullmatch(value) is not None


def _is_amount(value: Any) -> bool:
    """A number of batches, or a share of them as a float."""
    return is_number(value) and (value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0)


def duration_problems(config: Config) -> Iterator[Problem]:
    """Numbers of batches, epochs and steps that Lightning would refuse late or read otherwise."""
    trainer = config.trainer
    if trainer.max_time is not None and not _is_time(trainer.max_time):
        why = "must be DD:HH:MM:SS (two hours: 00:02:00:00), or {hours:2,minutes:30}"
        yield Problem("trainer.max_time", why, value=trainer.max_time)
    for phase in ("train", "val", "test", "predict"):
        value = getattr(trainer, f"limit_{phase}_batches")
        if value is not None and not _is_amount(value):
            why = "must be a number of batches, a share from 0.0 to 1.0, or null"
            yield Problem(f"trainer.limit_{phase}_batches", why, value=value)
    yield from _validation_interval_problems(config)
    bounds = (trainer.max_epochs, trainer.max_steps)
    if all(bound in (None, -1) for bound in bounds) and trainer.max_time is None:
        why = "leaves the run without an end"
        fix = "Give trainer.max_epochs, trainer.max_steps or trainer.max_time."
        yield Problem("trainer.max_epochs", why, fix, trainer.max_epochs)
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if _is_amount(getattr(trainer, key)) and getattr(trainer, key) == 0:
            yield Problem(f"trainer.{key}", "trains nothing", value=0)


def _validation_interval_problems(config: Config) -> Iterator[Problem]:
    interval = config.trainer.val_check_interval
    amount = _is_amount(interval) and interval > 0
    if not (interval is None or _is_time(interval) or amount):
        why = "must be optimizer steps (1 or more), a share of an epoch (up to 1.0) or DD:HH:MM:SS"
        yield Problem("trainer.val_check_interval", why, value=interval)


def trainer_problems(config: Config) -> Iterator[Problem]:
    """Keywords with a form of their own, with one possible value, and strategies that shard."""
    trainer = config.trainer
    if not isinstance(trainer.fast_dev_run, bool | int) or trainer.fast_dev_run < 0:
        why = "must be true, false or a number of batches"
        yield Problem("trainer.fast_dev_run", why, value=trainer.fast_dev_run)
    if not (trainer.deterministic in (None, "warn") or isinstance(trainer.deterministic, bool)):
        choices = ("true", "false", "warn")
        yield choice_problem("trainer.deterministic", trainer.deterministic, choices)
    for name, (expected, why, fix) in _FIXED.items():
        if getattr(trainer, name) != expected:
            yield Problem(f"trainer.{name}", why, fix, getattr(trainer, name))
    if trainer.strategy.startswith(("fsdp", "deepspeed")):
        why = "shards weights, but resume states and gradient norms here are those of whole weights"
        yield Problem("trainer.strategy", why, "Use ddp.", trainer.strategy)
    elif trainer.strategy not in STRATEGIES:
        yield choice_problem("trainer.strategy", trainer.strategy, STRATEGIES)


def parse_devices(devices: Any) -> int | list[int] | None:
    """What `trainer.devices` asks for: how many, which, or None for all (`auto`, -1).

    As in Lightning, the text "2" is a number and "0,2" or "2," are indices.

    Raises:
        ValueError: It is none of these, or names a device twice.
    """
    if devices in ("auto", "-1", -1):
        return None
    if isinstance(devices, str):
        listed = [int(part) for part in devices.split(",") if part.strip()]
        devices = listed if "," in devices else listed[0]
    if isinstance(devices, list):
        if not devices or len(set(devices)) < len(devices):
            raise ValueError(devices)
        if not all(type(index) is int and index >= 0 for index in devices):
            raise ValueError(devices)
        return devices
    if type(devices) is not int or devices < 1:  # a boolean is an int, but no number of devices
        raise ValueError(devices)
    return devices


def device_problems(config: Config, machine: Machine, world_size: int | None) -> Iterator[Problem]:
    """Devices that are not there, or as many as the launcher did not start."""
    trainer = config.trainer
    try:
        devices = parse_devices(trainer.devices)
    except (ValueError, TypeError, IndexError):
        why = "must be a number of devices, a list of their indices ([0,2]), -1 or auto"
        yield Problem("trainer.devices", why, value=trainer.devices)
        return
    gpus = machine.cuda or int(machine.mps)
    there = {"cuda": machine.cuda, "gpu": gpus, "mps": int(machine.mps)}
    kind = trainer.accelerator
    if kind == "auto":
        kind = "gpu" if gpus else "cpu"
    needed = max(devices) + 1 if isinstance(devices, list) else devices or 0
    if kind in there and not there[kind]:
        fix = "Use trainer.accelerator=auto or cpu."
        yield Problem("trainer.accelerator", "is not on this machine (torch sees none)", fix, kind)
    elif kind in there and needed > there[kind]:
        why = f"asks for more than the {there[kind]} that torch sees"
        yield Problem("trainer.devices", why, value=trainer.devices)
    if kind == "cpu" and not isinstance(devices, int) and trainer.devices != "auto":
        why = "is not for a CPU, whose processes have no index"
        yield Problem("trainer.devices", why, "Give their number.", trainer.devices)
    if trainer.precision == "16-mixed" and kind == "cpu":
        why = "needs a GPU: on a CPU there is no gradient scaler for float16"
        yield Problem("trainer.precision", why, "Use bf16-mixed or 32-true.", "16-mixed")
    if world_size is not None and devices is not None:
        per_node = len(devices) if isinstance(devices, list) else devices
        if per_node * trainer.num_nodes != world_size:
            why = f"on {trainer.num_nodes} node(s), but the launcher started {world_size} processes"
            yield Problem("trainer.devices", why, "Make them equal.", trainer.devices)


def product_problems(config: Config, machine: Machine) -> Iterator[Problem]:
    """A library of matrix products that this build of torch lacks."""
    library = config.model.matmul_library
    if library == "onednn" and not machine.onednn:
        why = "is not in this build of torch"
        yield Problem("model.matmul_library", why, "Use auto or torch.", library)


def compile_problems(config: Config) -> Iterator[Problem]:
    """Compilation on a CPU without a compiler, and adapters that are installed nowhere."""
    accelerator = config.trainer.accelerator
    compilers = ("g++", "clang++", "c++", "cl")
    if config.model.compile and accelerator == "cpu" and not any(map(shutil.which, compilers)):
        why = "needs a C++ compiler on a CPU, and none of g++, clang++ and cl is on the path"
        yield Problem("model.compile", why, "Install one, or set model.compile=false.", True)
    if config.model.lora.r:
        yield from package_problems("model.lora.r", config.model.lora.r, "peft", "lora")


def callback_problems(config: Config) -> Iterator[Problem]:
    """Loggers that are not installed, when to sample, and exporting a best that cannot be known."""
    name, samples = config.logger.name, config.callbacks.samples
    if name in ("wandb", "swanlab"):
        yield from package_problems("logger", name, name, name)
    every = samples.every
    if every != "val" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        why = "must be val, or a number of optimizer steps"
        yield Problem("callbacks.samples.every", why, value=every)
    validates = bool(config.data.val) or config.data.val_fraction != 0
    if config.export.which == "best" and (not validates or config.trainer.limit_val_batches == 0):
        why = "means lowest val/loss, but nothing is validated"
        yield Problem("export.which", why, "Give data.val or use last.", "best")
