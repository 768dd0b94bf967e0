"""The jobs of a multirun, looked at before the first of them runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType

from minimind_dpo.config.check import folder_problems
from minimind_dpo.config.command_line import CommandLine, parsed, quoted
from minimind_dpo.config.compose import compose, compose_hydra
from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import SHIPPED, Source
from minimind_dpo.evaluation.options import VOTED
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.report.options import DIRECTIONS

_TRIED: Final = 16
"""Values of a key in a sweep that are composed beforehand; each takes a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A multirun.

    Attributes:
        folder: Of the sweep.
        axes: Each override with its values, those of a chosen sweep first.
        keys: What has another value in other jobs.
        direction: Of a search, as it is without the objective's; empty for a grid.
    """

    folder: Path
    axes: tuple[list[str], ...]
    keys: frozenset[str]
    direction: str = ""

    @classmethod
    def read(cls, line: CommandLine) -> Grid:
        """The multirun of a command line, after `for_sweep`.

        Raises:
            ConfigError: An override cannot be read, or its first value cannot be composed.
        """
        given = parsed(line.overrides)
        single = [values[0] for override in given if (values := _values(override))]
        hydra = compose_hydra(single, line.source).hydra
        preset = hydra.sweeper.get("params") or {}
        overrides = [*parsed([f"{key}={values}" for key, values in preset.items()]), *given]
        axes = tuple(values for override in overrides if (values := _values(override)))
        swept = [override.key_or_group for override in given if override.is_sweep_override()]
        direction = str(hydra.sweeper.get("direction") or "").rpartition(".")[2]
        keys = frozenset([*swept, *preset])
        return cls(Path(hydra.sweep.dir).expanduser(), axes, keys, direction)


def check_jobs(
    grid: Grid, source: Source = SHIPPED, check: Callable[[Config], None] | None = None
) -> Config:
    """Refuse a multirun whose first job cannot run, or with a value that cannot be composed.

    A later job that is composed and cannot run fails by itself, and is told with the others.

    Args:
        grid: The multirun.
        source: Files of the user's own.
        check: Raises ConfigError for a configuration that cannot run; None where that cannot be
            known here.

    Returns:
        The configuration of the first job.

    Raises:
        ConfigError: With what is wrong.
    """
    first = [values[0] for values in grid.axes]
    problems = {str(each): each for each in folder_problems("run_dir", str(grid.folder))}
    others = [
        [*first[:place], value, *first[place + 1 :]]
        for place, values in enumerate(grid.axes)
        for value in values[1:]
    ]
    configs = []
    for overrides in (first, *others):
        try:
            configs.append(compose(overrides, source))
        except ConfigError as error:
            problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise ConfigError(list(problems.values()))
    config = configs[0]
    if grid.direction and (problem := search_problem(config)):
        raise ConfigError([problem])
    if check is not None:
        check(config)
    return config


def search_problem(config: Config) -> Problem | None:
    """A search for a number that none of its jobs has."""
    objective, judge = config.sweep.objective, config.judge.name
    if objective == "loss":
        return None
    fix = "Leave the verdict on; sweep.objective=loss compares runs of one beta and one loss."
    if not config.evaluate.prompts or judge == "none":
        why = "is a number of the verdict, which evaluate=none or judge=none leaves out"
    elif judge in VOTED:
        why = f"is not there when a job ends: judge={judge} waits for votes"
        fix = "Search with another judge, and let people vote on the best run."
    elif not config.holds_out:
        why = "is a number of the verdict, but data.val and data.val_fraction hold out nothing"
        fix = "Give data.val=FILE."
    else:
        return None
    return Problem("sweep.objective", why, fix, objective)


def for_search(line: CommandLine, grid: Grid, objective: str) -> CommandLine:
    """With the direction in which `sweep.objective` is better, where the multirun is a search.

    Raises:
        ConfigError: Another direction was asked for.
    """
    if not grid.direction:
        return line
    direction = f"hydra.sweeper.direction={DIRECTIONS[objective]}"
    given = [text for text in line.overrides if text.startswith("hydra.sweeper.direction=")]
    if given and given[-1] != direction:
        why = f"is the wrong way for sweep.objective={objective}"
        raise ConfigError([Problem(given[-1], why, f"Leave it out, or give {direction}.")])
    return replace(line, overrides=(*line.overrides, direction))


def for_sweep(line: CommandLine) -> CommandLine:
    """With `run_dir` as the folder of the sweep, in which each job has one of its own.

    Raises:
        ConfigError: It has several values, or `resume` names a run.
    """
    overrides, folder = [], None
    for override in parsed(line.overrides):
        key = override.key_or_group
        if key in ("run_dir", "resume") and override.is_sweep_override():
            raise ConfigError([Problem(key, "cannot be swept: each job has a folder of its own")])
        if key == "resume" and override.value() not in (None, "auto"):
            fix = "Name its folder: the same command with run_dir=FOLDER runs what is left of it."
            raise ConfigError([Problem("resume", "is for one run", fix, override.value())])
        if key == "run_dir":
            folder = override.value()
        elif key != "resume":
            overrides.append(str(override.input_line))
    if folder is not None:
        overrides.append(f"hydra.sweep.dir={quoted(str(folder))}")
    return replace(line, overrides=tuple(overrides))


def _values(override: Override) -> list[str]:
    """An override with each of its values in a sweep, the first of them if they are many."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        # A search draws from between its ends, and may never try these.
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        whole = isinstance(low, int) and isinstance(high, int)
        return [f"{key}={(low + high) // 2 if whole else (low + high) / 2}"]
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return []  # files of a group, so each of them is there
    return [f"{key}={text}" for text in islice(override.sweep_string_iterator(), _TRIED)]
