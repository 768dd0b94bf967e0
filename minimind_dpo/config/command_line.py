"""The command line: flags apart from overrides, wherever they stand, and the jobs of a multirun.

Hydra stops at what it finds wrong with a message of its own and a code of 1, after it has made
folders. So everything is composed here before Hydra is let run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, Final, NoReturn

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from minimind_dpo.config.compose import CONF_DIR, compose, compose_problem, register_schemas
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError, Problem, nearest

_MODES: Final = ("run", "multirun", "cfg", "info", "shell_completion")

_TRIED: Final = 16
"""Values of a sweep that are composed, and jobs of a grid that are looked at for one that can run;
each takes a tenth of a second."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was typed.

    Attributes:
        overrides: `key=value` and the like, in order.
        flags: The rest, in order.
        multirun: `-m`: run a grid of jobs.
        shows: Something is printed and nothing runs: `--help`, `--cfg` and the like.
        composes: The configuration is among what is printed.
        own_config: The configuration is read from files or folders of the user's own as well.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    multirun: bool = False
    shows: bool = False
    composes: bool = False
    own_config: bool = False

    @property
    def ordered(self) -> list[str]:
        """As Hydra wants it: flags between overrides are an error to it."""
        return [*self.overrides, *self.flags]


@dataclass(frozen=True, slots=True)
class _Axis:
    """An override in a grid: each of its values as an override of its own, in order."""

    values: list[str]
    is_range: bool = False

    @property
    def some(self) -> list[str]:
        """All values, or of many the first ones and the last; of a range both ends say enough."""
        kept = 2 if self.is_range else _TRIED
        if len(self.values) <= kept:
            return self.values
        return [*self.values[: kept - 1], self.values[-1]]


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Tell flags from overrides.

    Raises:
        ConfigError: There is no such flag, or it lacks its value.
    """
    parser = get_args_parser()
    known = [name for name in parser._option_string_actions if name.startswith("--")]

    def refuse(message: str) -> NoReturn:
        flag = re.search(r"unrecognized arguments: (-\S+)", message)
        if flag is None:
            raise ConfigError([Problem("command line", message, "All flags: --hydra-help.")])
        near = nearest(flag.group(1), known)
        fix = f"Did you mean {near}?" if near else "All flags: --hydra-help."
        raise ConfigError([Problem(flag.group(1), "there is no such flag", fix)])

    parser.error = refuse  # type: ignore[method-assign]
    found: Any = parser.parse_intermixed_args(list(arguments))
    modes = [name for name in _MODES if getattr(found, name)]
    if len(modes) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in modes[:2])
        raise ConfigError([Problem(second, f"does not go with {first}", "Give one of them.")])
    flags, left = [], list(found.overrides)
    for argument in arguments:
        if left and argument == left[0]:
            left.pop(0)
        else:
            flags.append(argument)
    return CommandLine(
        overrides=tuple(found.overrides),
        flags=tuple(flags),
        multirun=found.multirun,
        shows=bool(found.help or found.hydra_help or found.cfg or found.info)
        or bool(found.shell_completion),
        composes=bool(found.cfg or found.info) and not (found.help or found.hydra_help),
        own_config=bool(found.config_dir or found.config_name or found.config_path)
        or bool(found.experimental_rerun),
    )


def check_jobs(overrides: Sequence[str], check: Callable[[Config], None] | None = None) -> None:
    """Refuse a multirun with an override that cannot be, or none of whose jobs can run.

    A job that cannot run among others that can fails by itself, and is reported with them.

    Args:
        overrides: As on the command line.
        check: Raises ConfigError for a configuration that cannot run; None where that cannot be
            known here.

    Raises:
        ConfigError: With what is wrong.
    """
    axes = _axes(overrides)
    first = [axis.values[0] for axis in axes]
    problems: dict[str, Problem] = {}
    for place, axis in enumerate(axes):
        for value in axis.some if place == 0 else axis.some[1:]:
            try:
                compose([*first[:place], value, *first[place + 1 :]])
            except ConfigError as error:
                problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise ConfigError(list(problems.values()))
    if check is not None:
        _check_any(check, axes)


def _check_any(check: Callable[[Config], None], axes: list[_Axis]) -> None:
    """Refuse a small grid where each job was tried, a large one for what all tried jobs share.

    In a large one every value stands in one of the jobs that are tried (of many values, some). A
    problem that is told of all of them in the same words depends on no value of the sweep.
    """
    whole = prod(len(axis.values) for axis in axes) <= _TRIED
    some = [axis.some for axis in axes]
    jobs = (
        list(product(*(axis.values for axis in axes)))
        if whole
        else [
            tuple(values[number % len(values)] for values in some)
            for number in range(max(map(len, some)))
        ]
    )
    errors: list[ConfigError] = []
    for job in jobs:
        try:
            check(compose(job))
        except ConfigError as error:
            errors.append(error)
        else:
            return
    if whole:
        raise errors[0]
    told = [{str(problem) for problem in error.problems} for error in errors]
    shared = set.intersection(*told)
    if shared:
        raise ConfigError([p for p in errors[0].problems if str(p) in shared])


def _axes(overrides: Sequence[str]) -> list[_Axis]:
    """Each override, those of the command line and those of a preset, with its values in a grid."""
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_overrides(list(overrides))
        single = [values[0] for override in parsed if (values := list(_values(override)))]
        register_schemas()
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = hydra_compose("config", overrides=single, return_hydra_config=True)
        preset = cfg.hydra.sweeper.get("params") or {}
        parsed = parser.parse_overrides([f"{k}={v}" for k, v in preset.items()]) + parsed
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError([compose_problem(error, overrides)]) from error
    return [
        _Axis(values, isinstance(override.value(), RangeSweep))
        for override in parsed
        if (values := list(_values(override)))
    ]


def _values(override: Override) -> Iterator[str]:
    if not override.is_sweep_override():
        assert override.input_line is not None
        yield override.input_line
        return
    value = override.value()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return  # files of a group, so each of them is there
    if override.is_discrete_sweep():
        for text in override.sweep_string_iterator():
            yield f"{override.get_key_element()}={text}"
    elif isinstance(value, IntervalSweep):
        # Its ends may be values that a search never tries.
        assert value.start is not None
        assert value.end is not None
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        middle = (value.start + value.end) // 2 if whole else (value.start + value.end) / 2
        yield f"{override.get_key_element()}={middle}"
