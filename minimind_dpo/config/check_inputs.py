"""What a run reads and writes, and what it optimises: folders, checkpoints, data, objective."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minimind_dpo.config.check_values import (
    HALF,
    SHARE,
    choice_problem,
    is_word,
    package_problems,
    value_at,
)
from minimind_dpo.config.compose import Problem, nearest
from minimind_dpo.config.schema import Config

if TYPE_CHECKING:
    from minimind_dpo.objective.preference_loss import LossOptions

_WEIGHTS: Final = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_MODEL_FILES: Final = ("config.json", "adapter_config.json")
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "tokenizer.model",
)
_HUB_NAME: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def run_problems(config: Config) -> Iterator[Problem]:
    """The run's name, its folders, and what it continues from."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", config.name):
        why = "is not good for a folder's name: letters, digits, '-', '_' and '.', at most 100"
        yield Problem("name", why, value=config.name)
    for key in ("output_dir", "run_dir", "data.cache_dir"):
        value = value_at(config, key)
        if value is not None:
            yield from _folder_problems(key, value)
    if config.resume not in (None, "auto") and not os.path.exists(config.resume):
        fix = "Name a checkpoint or run folder; or resume=auto with run_dir=FOLDER."
        yield Problem("resume", "does not exist", fix, config.resume)


def _folder_problems(key: str, value: str) -> Iterator[Problem]:
    """A folder that is to be made has to be possible: below a folder that can be written to."""
    if not value.strip():
        yield Problem(key, "is empty", value=value)
        return
    folder = Path(os.path.expanduser(value)).absolute()
    there = next(parent for parent in (folder, *folder.parents) if os.path.lexists(parent))
    if not there.is_dir():
        yield Problem(key, f"cannot be made, since {there} is not a folder", value=value)
    elif not os.access(there, os.W_OK):
        why = f"cannot be written to ({there} is read-only for this user)"
        yield Problem(key, why, value=value)


def model_problems(config: Config) -> Iterator[Problem]:
    """The policy, tokenizer and reference: where they are, and how they are trained."""
    model, lora = config.model, config.model.lora
    if not model.path:
        example = "python -m minimind_dpo.train model.path=full_sft_768.pth data.train=dpo.jsonl"
        yield Problem("model.path", "is missing: it names what to train", f"For example: {example}")
    else:
        yield from _checkpoint_problems("model.path", model.path)
    if model.tokenizer is not None:
        yield from _checkpoint_problems("model.tokenizer", model.tokenizer)
    if config.reference.path is not None:
        yield from _checkpoint_problems("reference.path", config.reference.path)
    if model.dtype in ("bfloat16", "float16"):
        fix = "Use float32, and for speed trainer.precision=bf16-mixed."
        yield Problem("model.dtype", f"is refused: {HALF}", fix, model.dtype)
    elif model.dtype not in ("float32", "float64"):
        yield choice_problem("model.dtype", model.dtype, ("float32", "float64"))
    if lora.r > 0:
        yield from package_problems("model.lora.r", lora.r, "peft", "lora")
        names = lora.target_modules
        if not (is_word(names) or (isinstance(names, list) and names and all(map(is_word, names)))):
            why = "must be all-linear, a layer's name, or a list of names"
            yield Problem("model.lora.target_modules", why, value=names)


def _checkpoint_problems(key: str, value: str) -> Iterator[Problem]:
    """A file, a folder with a config or tokenizer, or what can be a name on a hub."""
    path = Path(os.path.expanduser(value))
    if value.startswith("modelscope:"):
        yield from package_problems(key, value, "modelscope", "modelscope")
    elif os.path.isdir(path):
        expected = _TOKENIZER_FILES if key == "model.tokenizer" else _MODEL_FILES
        if not any((path / name).is_file() for name in expected):
            inside = sorted(file.name for file in path.iterdir() if file.suffix in _WEIGHTS)
            fix = f"Name the file: {key}={path / inside[0]}" if inside else ""
            yield Problem(key, f"is a folder without {' or '.join(expected)}", fix, value)
    elif os.path.isfile(path):
        if path.stat().st_size == 0:
            yield Problem(key, "is an empty file", value=value)
    elif not _HUB_NAME.fullmatch(value) or path.suffix in _WEIGHTS:
        folder = path.parent
        if not os.path.isdir(folder):
            yield Problem(key, f"does not exist, nor does its folder {folder}", value=value)
            return
        near = nearest(path.name, os.listdir(folder))
        fix = f"Did you mean {folder / near}?" if near else ""
        yield Problem(key, "does not exist", fix, value)


def data_problems(config: Config) -> Iterator[Problem]:
    """Files that are missing or named twice, and lengths that contradict each other."""
    data = config.data
    if not data.train:
        why = "is missing: it names the preference pairs"
        yield Problem("data.train", why, "For example: data.train=dpo.jsonl")
    named: dict[str, set[str]] = {}
    for key, entries in (("data.train", data.train), ("data.val", data.val)):
        bad = [entry for entry in entries if not is_word(entry)]
        if bad:
            why = "must be a file, a glob, a hub data set or a list of them"
            yield Problem(key, why, value=bad)
        elif entries:
            named[key] = set()
            yield from _file_problems(key, entries, named[key])
    for path in sorted(set.intersection(*named.values()) if len(named) == 2 else ()):
        why = "is in data.train as well, so validation would measure memory"
        yield Problem("data.val", why, "Leave data.val out to split off unseen prompts.", path)
    for key in ("max_prompt_length", "max_completion_length"):
        value = getattr(data, key)
        if value is not None and value >= data.max_length:
            why = f"must be below data.max_length={data.max_length}, which has to hold both sides"
            yield Problem(f"data.{key}", why, value=value)
    if data.pad_to_max_length and data.layout != "padded":
        fix = "Set data.layout=padded as well."
        yield Problem("data.pad_to_max_length", "is for the padded layout alone", fix, True)


def _file_problems(key: str, entries: list[str], paths: set[str]) -> Iterator[Problem]:
    from minimind_dpo.data.read.problems import DataError
    from minimind_dpo.data.read.sources import resolve_files

    try:
        paths.update(os.path.realpath(file.path) for file in resolve_files(entries))
    except DataError as error:
        for problem in error.problems:
            yield Problem(key, problem.message, value=problem.source)


def loss_options(config: Config) -> LossOptions:
    """The objective's own options from the group `loss`."""
    from minimind_dpo.objective.preference_loss import LossOptions

    loss = config.loss
    weights = None if loss.weights is None else tuple(loss.weights)
    values = {name: getattr(loss, name) for name in LossOptions.__dataclass_fields__}
    return LossOptions(**{**values, "type": tuple(loss.type), "weights": weights})


def loss_problems(config: Config) -> Iterator[Problem]:
    """What the objective refuses, and a reference that is missing or that nobody reads."""
    from minimind_dpo.objective.preference_loss import LOSSES, problems

    options, mode = loss_options(config), config.reference.mode
    for text in problems(options):
        named = re.match(r"loss\.type='(\w+)' is not a loss", text)
        near = nearest(named.group(1), list(LOSSES)) if named else None
        key = re.match(r"[\w.]*", text)
        yield Problem(key.group() if key else "loss", text, f"Did you mean {near}?" if near else "")
    known = [name for name in options.type if is_word(name) and name in LOSSES]
    needy = [name for name in known if LOSSES[name].reference]
    if mode == "none" and needy:
        fix = "Use reference.mode=precomputed, or a loss without a reference."
        why = f"does not do: loss.type={needy[0]} reads a reference"
        yield Problem("reference.mode", why, fix, mode)
    if mode in ("precomputed", "online") and known and not needy:
        fix = "Set reference.mode=none."
        why = f"is for nothing: loss.type={known[0]} reads no reference"
        yield Problem("reference.mode", why, fix, mode)


def optim_problems(config: Config) -> Iterator[Problem]:
    """The optimizer, and warmup given twice or where there can be none."""
    optim, schedule = config.optim, config.schedule
    if len(optim.betas) != 2 or any(beta not in SHARE for beta in optim.betas):
        why = "must be two numbers, at least 0 and below 1"
        yield Problem("optim.betas", why, value=optim.betas)
    if not (optim.fused == "auto" or isinstance(optim.fused, bool)):
        yield choice_problem("optim.fused", optim.fused, ("auto", "true", "false"))
    if optim.fused is True and config.trainer.precision == "16-mixed":
        why = "does not go with trainer.precision=16-mixed, whose scaler has to see the gradients"
        yield Problem("optim.fused", why, "Leave it at auto, or use bf16-mixed.", True)
    if schedule.warmup_steps > 0 and schedule.warmup_ratio > 0:
        why = f"excludes schedule.warmup_ratio={schedule.warmup_ratio:g}"
        fix = "Set one of them to 0."
        yield Problem("schedule.warmup_steps", why, fix, schedule.warmup_steps)
    for key in ("warmup_steps", "warmup_ratio"):
        if schedule.name == "notebook" and getattr(schedule, key) > 0:
            why = f"has no warmup, but schedule.{key} is above 0"
            yield Problem("schedule.name", why, f"Set schedule.{key}=0.", "notebook")
