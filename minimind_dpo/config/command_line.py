"""The command line: flags, overrides, files of the user's own, and what it leaves unsaid.

Hydra stops at what it finds wrong with a message of its own and a code of 1, after it has made
folders. So everything is composed here before Hydra is let run.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException

from minimind_dpo import __version__, launch
from minimind_dpo.config.explain import compose_problem, key_of, near_key
from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import SHIPPED, Source, run_folder_of
from minimind_dpo.options.limits import Choices, keys_of
from minimind_dpo.options.problem import ConfigError, Problem, missing_file, nearest

_MODES: Final = ("run", "multirun", "cfg", "info", "shell_completion")
_SHOWING: Final = ("help", "hydra_help", "cfg", "info", "shell_completion")
_OURS: Final = ("config", "config_dir", "config_name", "config_path", "overrides")
_NAMED: Final = re.compile(
    r"\+{0,2}(experiment|model|data)(@\S+)?=|\+{0,2}(model\.path|data\.train)=|hydra\.searchpath="
)
"""What says what to train: the demo is for a command line that does not."""


_WORDS: Final = re.compile(r"""'(?:\\.|[^'])*'|"(?:\\.|[^"])*"|[^\s,:=$'"()\[\]{}]+""")
"""Quoted strings, and what stands between the signs of Hydra's grammar."""


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was typed.

    Attributes:
        overrides: `key=value` and the like, in order.
        flags: Hydra's own flags that were typed.
        source: The files of the user's own.
        shows: What is printed where nothing runs: `help`, `cfg` and the like; else empty.
        multirun: `-m`: run a grid of jobs.
        note: What was added to it, for people.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...] = ()
    source: Source = SHIPPED
    shows: str = ""
    multirun: bool = False
    note: str = ""


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Tell flags from overrides, and find the files that flags name.

    Raises:
        ConfigError: There is no such flag, it lacks its value, or it does not go with the others.
    """
    parser = _parser(arguments)
    typed = parser.parse_intermixed_args(list(arguments))
    modes = [name for name in _MODES if getattr(typed, name)]
    if len(modes) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in modes[:2])
        raise ConfigError([Problem(second, f"does not go with {first}", "Give one of them.")])
    for name in ("package", "resolve"):
        if getattr(typed, name) and not (typed.cfg or (name == "resolve" and typed.help)):
            raise ConfigError([Problem(f"--{name}", "is for what --cfg prints", "Add --cfg job.")])
    if typed.experimental_rerun:
        why = "needs files that this program does not write"
        fix = "Continue a run with resume=FOLDER, repeat it with --config FOLDER/config.yaml."
        raise ConfigError([Problem("--experimental-rerun", why, fix)])
    search = _search(typed.config_dir, typed.overrides)
    line = CommandLine(
        overrides=(*map(_with_quotes, typed.overrides), *search),
        flags=tuple(_flags(parser, typed)),
        source=_source(typed),
        shows=next((name for name in _SHOWING if getattr(typed, name)), ""),
        multirun=typed.multirun,
    )
    # The jobs of a sweep, and their further ranks, are given the sweep that was chosen.
    of_sweep = launch.is_job_of_sweep() or launch.launched_by_rank()
    if not (line.multirun or line.shows or of_sweep):
        _refuse_what_is_for_sweeps(line.overrides)
    return line


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Hydra's, with `--config` and the version of this program, and errors told as problems."""
    parser = get_args_parser()
    version: Any = parser._option_string_actions["--version"]
    version.version = f"minimind_dpo {__version__}"
    parser.add_argument("--config")
    flags = [name for name in parser._option_string_actions if name.startswith("--")]

    def refuse(message: str) -> NoReturn:
        flag = re.search(r"unrecognized arguments: (-\S+)", message)
        if flag is None:
            raise ConfigError([Problem("command line", message, "All flags: --hydra-help.")])
        raise ConfigError([_unknown_flag(flag.group(1), arguments, flags)])

    parser.error = refuse  # type: ignore[method-assign]
    return parser


def _unknown_flag(flag: str, arguments: Sequence[str], known: Sequence[str]) -> Problem:
    """A flag that is a key of the configuration, or is spelled wrongly."""
    flag, equals, value = flag.partition("=")
    name = flag.lstrip("-").replace("-", "_")
    following = next((second for first, second in pairwise(arguments) if first == flag), "")
    if not equals and not re.match(r"-\D|[^=]+=", following):
        value = following
    near = nearest(flag, known)
    key = key_of(name) or (None if near else near_key(name))
    if key:
        return Problem(flag, "there is no such flag", f"Write {key}={value or 'VALUE'}")
    fix = f"Did you mean {near}?" if near else "All flags: --hydra-help."
    return Problem(flag, "there is no such flag", fix)


def _flags(parser: argparse.ArgumentParser, typed: argparse.Namespace) -> Iterator[str]:
    """Hydra's own flags that were given, by their long names."""
    for action in parser._actions:
        value = getattr(typed, action.dest, None)
        if action.dest not in _OURS and value not in (None, False):
            yield action.option_strings[0]
            if value is not True:
                yield str(value)


def _search(config_dir: str | None, overrides: Sequence[str]) -> list[str]:
    """`--config-dir` as Hydra's own override, which the jobs of a sweep are given as well."""
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError([Problem("--config-dir", "is no folder", value=config_dir)])
    if any(override.startswith("hydra.searchpath=") for override in overrides):
        fix = "Name all folders there."
        raise ConfigError([Problem("--config-dir", "does not go with hydra.searchpath", fix)])
    return [f"hydra.searchpath=[{quoted(f'file://{folder}')}]"]


def _source(typed: argparse.Namespace) -> Source:
    """The files that flags name; refuses one that is not there, and two at once."""
    conf = SHIPPED.conf
    if typed.config_path is not None:
        conf = Path(typed.config_path).expanduser().absolute()
        if not (conf / "config.yaml").is_file():
            why = "is no folder with a config.yaml"
            fix = "To add a folder to the program's own, use --config-dir."
            raise ConfigError([Problem("--config-path", why, fix, typed.config_path)])
    if typed.config is not None and typed.config_name is not None:
        raise ConfigError([Problem("--config", "does not go with --config-name", "Give one.")])
    if typed.config is not None:
        file = Path(typed.config).expanduser().absolute()
        if not file.is_file():
            raise ConfigError([Problem("--config", "is no file", value=typed.config)])
        return Source(conf, file)
    if typed.config_name is None:
        return Source(conf)
    return Source(conf, _named_file(typed.config_name, typed.config_dir, conf))


def _named_file(name: str, config_dir: str | None, conf: Path) -> Path:
    """The file that `--config-name` names, in the user's folder or among the program's own."""
    folders = [Path(folder).expanduser().absolute() for folder in (config_dir, conf) if folder]
    names = (name, f"{name}.yaml", f"{name}.yml")
    for path in (folder / candidate for folder in folders for candidate in names):
        if path.is_file():
            return path
    near = nearest(name, [path.stem for folder in folders for path in folder.glob("*.y*ml")])
    fix = f"Did you mean {near}?" if near else "Add --config-dir FOLDER, or give --config FILE."
    why = f"is no file in {' or '.join(map(str, folders))}"
    raise ConfigError([Problem("--config-name", why, fix, name)])


def _refuse_what_is_for_sweeps(overrides: Sequence[str]) -> None:
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == "sweep" and override.startswith("+"):
            fix = f"Add -m: python -m minimind_dpo.train -m +sweep={value} ..."
            raise ConfigError([Problem("sweep", "is for several jobs", fix, value)])
        if key.startswith(("hydra.", "hydra/")) and key != "hydra.searchpath":
            why = "is for several jobs, or for what is printed"
            raise ConfigError([Problem(key, why, "Add -m, or leave it out.", value)])


def completed(line: CommandLine) -> CommandLine:
    """With what it leaves unsaid: the settings of the run that it resumes, or else the demo.

    Only a command line that does not say what to train is completed: that names no `model.path`,
    `data.train`, experiment, other file of the groups `model` or `data`, or file of the user's.

    Raises:
        ConfigError: It resumes a state that no run's `config.yaml` belongs to.
    """
    names_data = any(_NAMED.match(override) for override in line.overrides)
    if names_data or line.source != SHIPPED or line.shows in ("help", "hydra_help"):
        return line
    run = None if line.multirun else _resumed_run(line.overrides)
    if run is not None:
        source = Source(file=run / "config.yaml", resumed=run)
        return replace(line, source=source, note=f"Settings: {source.file}")
    if line.shows:
        return line
    note = "Nothing named to train on: running the embedded demo (experiment=demo)."
    return replace(line, overrides=(*line.overrides, "experiment=demo"), note=note)


def _resumed_run(overrides: Sequence[str]) -> Path | None:
    """The run folder that `resume=PATH`, or `resume=auto run_dir=PATH`, goes on with."""
    values = {
        o.get_key_element(): o.value() for o in parsed(overrides) if not o.is_sweep_override()
    }
    resume, run_dir = values.get("resume"), values.get("run_dir")
    if not isinstance(resume, str) or not resume:
        return None
    if resume == "auto":
        run = Path(run_dir).expanduser() if isinstance(run_dir, str) and run_dir else None
        return run if run is not None and (run / "config.yaml").is_file() else None
    path = Path(resume).expanduser()
    if not path.exists():
        raise ConfigError([missing_file("resume", resume, path)])
    run = run_folder_of(path)
    if run is None or not (run / "config.yaml").is_file():
        why = "has no run's config.yaml beside it, which would say what it trains"
        fix = "Give the settings of the run: model.path=... data.train=..., or --config FILE."
        raise ConfigError([Problem("resume", why, fix, resume)])
    return run


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them, or ConfigError."""
    try:
        return list(OverridesParser.create().parse_overrides(list(overrides)))
    except OverrideParseException as error:
        raise ConfigError([compose_problem(error, overrides)]) from error


def _with_quotes(override: str) -> str:
    """With quotes around words that Hydra's grammar cannot read bare: those beyond ASCII."""
    key, equals, value = override.partition("=")
    return key + equals + _WORDS.sub(lambda word: _word(word.group()), value)


def _word(text: str) -> str:
    return text if text.isascii() or text[0] in "'\"" else quoted(text)


def quoted(text: str) -> str:
    """A value in Hydra's override grammar, whatever characters it has."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def completed_values() -> list[str]:
    """The line's last word, `key=start of a value`, with each choice of that key.

    Returns:
        Nothing where it is no such word, or its key has no choices.
    """
    word = os.environ.get("COMP_LINE", "").rpartition(" ")[2]
    name, equals, start = word.partition("=")
    return [f"{name}={choice}" for choice in _choices(name) if equals and choice.startswith(start)]


def _choices(name: str) -> list[str]:
    if name == "loss.type":
        from minimind_dpo.objective.losses.registry import LOSSES  # imports torch

        return list(LOSSES)
    limits = [limit for key in keys_of(Config) if key.name == name for limit in key.limits]
    return [word for limit in limits if isinstance(limit, Choices) for word in limit.words]
