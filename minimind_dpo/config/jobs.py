"""The jobs of a multirun, looked at before the first of them runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Final

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType

from minimind_dpo.config.command_line import CommandLine, parsed
from minimind_dpo.config.compose import compose, compose_hydra
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError, Problem

_TRIED: Final = 16
"""Values of a key in a sweep that are composed beforehand; each takes a tenth of a second."""


def check_jobs(line: CommandLine, check: Callable[[Config], None] | None = None) -> None:
    """Refuse a multirun whose first job cannot run, or with a value that cannot be composed.

    A later job that is composed and cannot run fails by itself, and is reported with the others.

    Args:
        line: The command line.
        check: Raises ConfigError for a configuration that cannot run; None where that cannot be
            known here.

    Raises:
        ConfigError: With what is wrong.
    """
    single = [values[0] for override in parsed(line.overrides) if (values := _values(override))]
    preset = compose_hydra(single, line.source).hydra.sweeper.get("params") or {}
    swept = parsed([*(f"{key}={values}" for key, values in preset.items()), *line.overrides])
    axes = [values for override in swept if (values := _values(override))]
    first = [values[0] for values in axes]
    problems: dict[str, Problem] = {}
    for place, values in enumerate(axes):
        for value in values[place > 0 :]:  # the first job once
            try:
                compose([*first[:place], value, *first[place + 1 :]], line.source)
            except ConfigError as error:
                problems |= {str(problem): problem for problem in error.problems}
    if problems:
        raise ConfigError(list(problems.values()))
    if check is not None:
        check(compose(first, line.source))


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
