"""Check every value of a configuration before anything is loaded; raise once, with all problems.

Types and names of keys are Hydra's business (`minimind_dpo.config`). Limits of single keys, and
what relates keys of one group, are declared beside them in the `options` module of each package.
Here they are walked, and what relates groups to each other, to the file system and to the machine
is added; last, whether model, tokenizer and reference are whole and fit each other, which takes
reading them. No line of data is read, and no weight stays in memory.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minimind_dpo import launch
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.data.options import data_problems
from minimind_dpo.evaluation.options import evaluate_problems, judge_problems
from minimind_dpo.models.options import model_problems, path_problems
from minimind_dpo.options.limits import limit_problems, value_at
from minimind_dpo.options.problem import ConfigError, Problem, shown
from minimind_dpo.training.option_values import parse_devices
from minimind_dpo.training.options import (
    end_problems,
    logger_problems,
    schedule_problems,
    trainer_problems,
)

COMPILERS: Final = ("g++", "clang++", "c++", "cl")
_PART_BYTES: Final = 255
"""Longest name of a file or folder on most file systems."""
_NAME_BYTES: Final = 200
"""Longest name of a run, which has a date or a job's number before it in its folder's name."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine can train on.

    Attributes:
        cuda: CUDA devices.
        mps: Whether there is Apple's.
        onednn: Whether this build of torch has the library oneDNN.
        bfloat16: Whether the CUDA devices compute in it by themselves.
        cores: Of the CPU.
    """

    cuda: int
    mps: bool
    onednn: bool = True
    bfloat16: bool = True
    cores: int = os.cpu_count() or 1

    @classmethod
    def detect(cls) -> Machine:
        """Ask torch."""
        import torch

        count = torch.cuda.device_count()
        return cls(
            cuda=count,
            mps=torch.backends.mps.is_available(),
            onednn=torch.backends.mkldnn.is_available(),
            bfloat16=not count or torch.cuda.is_bf16_supported(including_emulation=False),
        )


def validate(
    config: Config,
    *,
    machine: Machine | None = None,
    world_size: int | None = None,
    read_checkpoints: bool = False,
    only: tuple[str, ...] = ("",),
) -> None:
    """Refuse a configuration that cannot work, before a run folder exists.

    Args:
        config: From `minimind_dpo.config.compose.compose` or `to_config`.
        machine: What to train on; asked of torch where None.
        world_size: Processes that a launcher (torchrun, SLURM) started, where one did.
        read_checkpoints: Look into model, tokenizer and reference as well: seconds, since
            transformers is imported for it.
        only: Beginnings of the keys that are read at all; by default all are.

    Raises:
        ConfigError: With every problem.
    """
    wrong = list(_value_problems(config))
    keys = {problem.key for problem in wrong}
    unfit = machine_problems(config, machine or Machine.detect(), world_size)
    wrong += [problem for problem in unfit if problem.key not in keys]
    if read_checkpoints:
        from minimind_dpo.config.check_models import checkpoint_problems

        wrong += checkpoint_problems(config, {problem.key for problem in wrong})
    wrong = [problem for problem in wrong if problem.key.startswith(only)]
    if wrong:
        order = {key: place for place, key in enumerate(schema_keys())}
        raise ConfigError(sorted(wrong, key=lambda problem: order.get(problem.key, len(order))))


def _value_problems(config: Config) -> Iterator[Problem]:
    """Of single values, and of what relates them, on any machine."""
    from minimind_dpo.objective.check_options import problems as loss_problems

    yield from (each for each in limit_problems(config) if not each.key.startswith("loss."))
    yield from run_problems(config)
    yield from model_problems(config.model)
    yield from data_problems(config.data)
    yield from loss_problems(config.loss)
    yield from schedule_problems(config.schedule)
    yield from trainer_problems(config.trainer)
    yield from end_problems(config.trainer, config.schedule)
    yield from logger_problems(config.logger)
    yield from evaluate_problems(config.evaluate)
    yield from judge_problems(config.judge, config.evaluate)
    yield from reference_problems(config)


def run_problems(config: Config) -> Iterator[Problem]:
    """The run's name, its folders, what it continues from, and what it exports."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", config.name):
        why = "is not good for a folder's name: letters, digits, '-', '_' and '.', at most 100"
        yield Problem("name", why, value=config.name)
    elif len(os.fsencode(config.name)) > _NAME_BYTES:
        why = f"is too long for a folder's name with a date before it: at most {_NAME_BYTES} bytes"
        yield Problem("name", why, "A Chinese character takes 3.", config.name)
    for key in ("output_dir", "run_dir", "data.cache_dir"):
        value = value_at(config, key)
        if value is not None:
            yield from folder_problems(key, value)
    if config.resume not in (None, "auto") and not os.path.exists(config.resume):
        fix = "Name a checkpoint or run folder; or resume=auto with run_dir=FOLDER."
        yield Problem("resume", "does not exist", fix, config.resume)
    validates = config.holds_out and config.trainer.limit_val_batches != 0
    if config.export.which == "best" and not validates:
        why = "means lowest val/loss, but nothing is validated"
        yield Problem("export.which", why, "Give data.val or use last.", "best")


def folder_problems(key: str, value: str) -> Iterator[Problem]:
    """A folder that is to be made has to be possible: below a folder that can be written to."""
    if not value.strip():
        yield Problem(key, "is empty", value=value)
        return
    folder = Path(os.path.expanduser(value)).absolute()
    if any(len(os.fsencode(part)) > _PART_BYTES for part in folder.parts):
        why = f"has a part of more than {_PART_BYTES} bytes, which file systems refuse"
        yield Problem(key, why, "Shorten it; a Chinese character takes 3.", value)
        return
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not there.is_dir():
        yield Problem(key, f"cannot be made, since {there} is not a folder", value=value)
    elif not os.access(there, os.W_OK):
        why = f"cannot be written to ({there} is read-only for this user)"
        yield Problem(key, why, value=value)


def reference_problems(config: Config) -> Iterator[Problem]:
    """A reference that is not there, that a loss misses, or that no loss reads."""
    from minimind_dpo.objective.losses.registry import LOSSES

    mode = config.reference.mode
    if config.reference.path is not None:
        yield from path_problems("reference.path", config.reference.path)
    names = [name for name in config.loss.type if isinstance(name, str) and name in LOSSES]
    needy = [name for name in names if LOSSES[name].reference]
    if mode == "none" and needy:
        fix = "Use reference.mode=precomputed, or a loss without a reference."
        why = f"does not do: loss.type={needy[0]} reads a reference"
        yield Problem("reference.mode", why, fix, mode)
    if mode in ("precomputed", "online") and names and not needy:
        fix = "Set reference.mode=none."
        why = f"is for nothing: loss.type={names[0]} reads no reference"
        yield Problem("reference.mode", why, fix, mode)


def machine_problems(config: Config, machine: Machine, world_size: int | None) -> Iterator[Problem]:
    """Devices, precisions, libraries and compilers that are not there.

    Args:
        config: Its values may be outside their limits, which are told elsewhere.
        machine: What this machine has.
        world_size: Processes that a launcher started, where one did.
    """
    trainer, library = config.trainer, config.model.matmul_library
    kind = trainer.accelerator
    if kind == "auto":
        kind = "gpu" if machine.cuda or machine.mps else "cpu"
    yield from _device_problems(config, machine, kind, world_size)
    if trainer.precision == "16-mixed" and kind == "cpu":
        why = "needs a GPU: on a CPU there is no gradient scaler for float16"
        yield Problem("trainer.precision", why, "Use bf16-mixed or 32-true.", "16-mixed")
    if trainer.precision == "bf16-mixed" and kind in ("gpu", "cuda") and not machine.bfloat16:
        why = "is emulated on this card, many times slower than float32"
        yield Problem("trainer.precision", why, "Use 16-mixed.", "bf16-mixed")
    if config.optim.fused is True and trainer.precision == "16-mixed" and not machine.cuda:
        why = "goes with trainer.precision=16-mixed on CUDA alone: its scaler is late elsewhere"
        yield Problem("optim.fused", why, "Leave it at auto.", True)
    if library == "onednn" and not machine.onednn:
        why = "is not in this build of torch"
        yield Problem("model.matmul_library", why, "Use auto or torch.", library)
    asked = config.model.compile is True
    if asked and kind == "cpu" and not any(map(shutil.which, COMPILERS)):
        why = "needs a C++ compiler on a CPU, and none of g++, clang++ and cl is on the path"
        yield Problem("model.compile", why, "Install one, or set model.compile=false.", True)
    if asked and config.model.gradient_checkpointing:
        why = "does nothing with model.gradient_checkpointing, inside which torch compiles nothing"
        yield Problem("model.compile", why, "Leave out one of the two.", True)


def _device_problems(
    config: Config, machine: Machine, kind: str, world_size: int | None
) -> Iterator[Problem]:
    """Devices that are not there, or as many as the launcher did not start."""
    trainer = config.trainer
    try:
        devices = parse_devices(trainer.devices)
    except (ValueError, TypeError, IndexError):
        return  # told by its limit
    gpus = machine.cuda or int(machine.mps)
    there = {"cuda": machine.cuda, "gpu": gpus, "mps": int(machine.mps)}
    needed = max(devices) + 1 if isinstance(devices, list) else devices or 0
    if kind in there and not there[kind]:
        fix = "Use trainer.accelerator=auto or cpu."
        yield Problem("trainer.accelerator", "is not on this machine (torch sees none)", fix, kind)
    elif kind in there and needed > there[kind]:
        why = f"asks for more than the {there[kind]} that torch sees"
        yield Problem("trainer.devices", why, value=trainer.devices)
    if kind == "cpu" and isinstance(devices, int) and devices > machine.cores:
        why = f"asks for more processes than the {machine.cores} cores of this machine"
        yield Problem("trainer.devices", why, "Each would wait for others.", trainer.devices)
    if kind == "cpu" and not isinstance(devices, int) and trainer.devices != "auto":
        why = "is not for a CPU, whose processes have no index"
        yield Problem("trainer.devices", why, "Give their number.", trainer.devices)
    per_node = len(devices) if isinstance(devices, list) else devices
    if per_node is None:
        return
    if launch.local_rank() >= per_node:
        why = f"in the environment is of no process of trainer.devices={shown(trainer.devices)}"
        yield Problem("LOCAL_RANK", why, "Unset it.", launch.local_rank())
    if world_size is not None and per_node * trainer.num_nodes != world_size:
        why = f"on {trainer.num_nodes} node(s), but the launcher started {world_size} processes"
        yield Problem("trainer.devices", why, "Make them equal.", trainer.devices)
