"""What Hydra and OmegaConf find wrong while they compose, told as a `Problem`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from hydra.errors import OverrideParseException

from minimind_dpo.config.schema import schema_keys
from minimind_dpo.config.source import SETTINGS, Source
from minimind_dpo.options.problem import Problem, nearest, shown

_GROUPS: Final = ("experiment", "logger", "sweep", "evaluate", "judge")

OTHER_NAMES: Final[dict[str, str]] = {
    "accumulation_steps": "trainer.accumulate_grad_batches",
    "bf16": "trainer.precision",
    "clip_grad": "trainer.gradient_clip_val",
    "data_path": "data.train",
    "dataset": "data.train",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "grad_clip": "trainer.gradient_clip_val",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "learning_rate": "optim.lr",
    "loss_type": "loss.type",
    "max_grad_norm": "trainer.gradient_clip_val",
    "max_seq_len": "data.max_length",
    "model_name_or_path": "model.path",
    "num_train_epochs": "trainer.max_epochs",
    "out_dir": "output_dir",
    "per_device_train_batch_size": "data.batch_size",
    "save_dir": "output_dir",
}
"""Keys by the names that other trainers have for them."""

_ADVICE: Final[dict[str, str]] = {
    "sweep.jobs": "Jobs run at the same time with -m hydra/launcher=joblib hydra.launcher.n_jobs=N",
    "trainer.overfit_batches": "Use trainer.limit_train_batches=N data.shuffle=false.",
    "optimizer": "There is one, AdamW: its keys are optim.lr, optim.betas, optim.weight_decay.",
}


def compose_problem(
    error: Exception, overrides: Sequence[str] = (), source: Source | None = None
) -> Problem:
    """What Hydra or OmegaConf found wrong, with the key, its value, and the nearest valid key.

    Args:
        error: What was raised while the configuration was composed.
        overrides: The command line, to show the value that was given.
        source: Where the configuration was read from, to name the file.
    """
    # Where Hydra looked for a group's options says nothing to a user.
    message = str(error).strip().split("\nConfig search path")[0]
    value_of = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    nameless = [override for override in overrides if re.match(r"[+~]*=", override)]
    if nameless:
        return Problem("command line", f"{nameless[0]} names no key", "Give key=value.")
    if isinstance(error, OverrideParseException):
        return _unparsed(error, message)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        key = unknown.group(1)
        return unknown_key(key, value_of.get(key, ...))
    merging = re.match(r"Error merging override [+~]*([^=\s]+)", message)
    if merging and error.__cause__ is not None:
        key = merging.group(1)
        return Problem(key, str(error.__cause__).splitlines()[0], value=value_of.get(key, ...))
    in_file = re.match(r"In '(.+)': \w+ raised while composing config:\n(.*)", message)
    if in_file:
        return _in_file(in_file.group(1), in_file.group(2), message, source)
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '([^=]+)=(.*)'", message)
    if several:
        key, values = several.groups()
        fix = f"Add -m for one job each; a list is written {key}=[...]."
        return Problem(key, "is several values", fix, values)
    message = re.sub(r"\s*\n\s*", " ", message)
    missing = re.search(r"Could not find '(.+)/(.+?)' (Available options in .*: )(.*)", message)
    return _no_such_file(*missing.groups()) if missing else Problem("command line", message)


def _unparsed(error: OverrideParseException, message: str) -> Problem:
    cause = re.sub(r"See https:.*|Error parsing override '.*'", "", message)
    why = f"cannot be read ({' '.join(cause.split())})"
    key, equals, value = error.override.lstrip("+~").partition("=")
    fix = "Give it as key=value; quote what holds brackets, quotes or spaces: key='\"a b\"'."
    return Problem(key or "command line", why, fix, value if equals else ...)


def _in_file(name: str, why: str, message: str, source: Source | None) -> Problem:
    """A key of a YAML file; `experiment/mine` is that file of the group."""
    file = str(source.file) if name == SETTINGS and source is not None else f"{name}.yaml"
    full_key = re.search(r"full_key: (\S+)", message)
    if full_key is None:
        return Problem(file, why)
    key = full_key.group(1)
    if key == name.split("/")[0] and "not in 'Config'" in why:
        fix = "Let its first line be: # @package _global_"
        return Problem(file, f"holds keys of its group alone, {key}.*, and there are none", fix)
    if re.match(r"Key '.*' (not in|is not in struct)", why):
        if source is not None and source.resumed is not None:
            fix = "Another version wrote it: take the key out of that file, and repeat the command."
            return Problem(key, f"is no key of this version (in {file})", fix)
        return unknown_key(key, place=f" (in {file})")
    return Problem(key, f"{why} (in {file})")


def _no_such_file(group: str, option: str, listed: str, options: str) -> Problem:
    plugins = {"joblib", "optuna", "submitit_local", "submitit_slurm"}
    if group in ("hydra/launcher", "hydra/sweeper") and option in plugins:
        fix = "Install it: pip install 'minimind-dpo[sweep]'"
        return Problem(group, "needs a package that is not installed", fix, option)
    near = nearest(option, options.split())
    fix = f"Did you mean {near}?" if near else ""
    return Problem(group, f"there is no such file. {listed}{options}", fix, option)


def unknown_key(key: str, value: Any = ..., place: str = "") -> Problem:
    """There is no such key (at `place`, if not on the command line); the nearest one is named."""
    if key.startswith("logger.options."):
        fix = f"If the logger's class has such a keyword: +{key}={shown(value)}"
    elif key in _ADVICE:
        fix = _ADVICE[key]
    elif key == "sweep" and value is not ...:
        return Problem(key, "is chosen with a plus", f"Write -m +sweep={shown(value)}", value)
    else:
        # Hydra's own advice, to append with a plus, would not do: the schema is closed.
        near = near_key(key)
        fix = f"Did you mean {near}?" if near else "All keys: --cfg job."
    return Problem(key, f"there is no such key{place}", fix, value)


def key_of(name: str) -> str | None:
    """The key that has this name in full, as its last part, or in other trainers."""
    keys, leaf = list(schema_keys()), name.rpartition(".")[2]
    same_leaf = [key for key in keys if key.rpartition(".")[2] == leaf]
    return name if name in keys else next(iter(same_leaf), OTHER_NAMES.get(leaf))


def near_key(name: str) -> str | None:
    """The key that is meant by a name that is none."""
    keys = [*schema_keys(), *_GROUPS]
    leaves = [key.rpartition(".")[2] for key in keys]
    return key_of(name) or nearest(name, keys) or key_of(nearest(name, leaves) or "")
