"""The command line of what is not training: its own keys, and the configuration beside them.

A command's own keys are the fields of a dataclass; their meaning is in `conf/commands/*.yaml`. All
other keys are the configuration's, composed as for training, over a run's own where one is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minimind_dpo import os_errors
from minimind_dpo.config.command_line import CommandLine, parsed, read_command_line
from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR, Source, run_folder_of
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.exit_codes import DONE, INTERRUPTED, NOT_READ, WRONG_INPUT
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.options.limits import limit_problems
from minimind_dpo.options.problem import ConfigError, Problem, nearest
from minimind_dpo.output import lead_nowhere

T = TypeVar("T")

CHAT_KEYS: Final = (
    *("data.chat_template", "data.template_options", "data.text_as_turns", "data.empty_think"),
    *("log_level", "seed", "threads", "trainer.accelerator"),
)
"""Beginnings of the keys that say how a prompt is written, and where and how a model runs."""
MODEL_KEYS: Final = ("model", *CHAT_KEYS)
"""The same, and which model."""

_WRONG_INPUT: Final = (ConfigError, CheckpointError, DataError)


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """What was typed.

    Attributes:
        own: The command's own keys.
        line: The rest, with which a configuration is composed.
    """

    own: T
    line: CommandLine

    def config(self, run: Path | None) -> Config:
        """The configuration, over that of a run's folder where there is one.

        Raises:
            ConfigError: As `compose`; or there is no model, or one is named beside the run.
        """
        if run is None:
            config = compose(self.line.overrides, self.line.source)
            if not config.model.path:
                fix = "Name a run's folder, or a model: run=RUN, or model.path=MODEL."
                raise ConfigError([Problem("run", "is missing, and so is model.path", fix)])
            return config
        named = [o for o in self.line.overrides if o.lstrip("+").startswith("model.path=")]
        if named or self.line.source.file is not None:
            why = f"names a run, and {named[0] if named else '--config'} something else"
            raise ConfigError([Problem("run", why, "Give one of them.", str(run))])
        source = Source(self.line.source.conf, run / "config.yaml", resumed=run)
        return compose(self.line.overrides, source)


def run_folder(run: str, key: str = "run") -> Path:
    """The folder of a run, by itself or by something in it.

    Raises:
        ConfigError: It is none; the nearest name beside it is told.
    """
    path = Path(run).expanduser()
    folder = run_folder_of(path) or path
    if (folder / "config.yaml").is_file():
        return folder
    if folder.is_dir():
        raise ConfigError([Problem(key, "is no folder of a run: it has no config.yaml", value=run)])
    inside = path.parent.iterdir() if path.parent.is_dir() else ()
    near = nearest(path.name, [entry.name for entry in inside])
    fix = f"Did you mean {path.parent / near}?" if near else "Name the folder of a run."
    raise ConfigError([Problem(key, "does not exist", fix, run)])


def read_command(arguments: Sequence[str], name: str, own: type[T], usage: str) -> Command[T]:
    """Take a command's own keys out of a command line; show what is asked to be shown, and end.

    Args:
        arguments: As typed.
        name: Of the command, and of its file in `conf/commands`.
        own: Dataclass of its own keys.
        usage: What `--help` begins with.

    Raises:
        ConfigError: With all that is wrong with the own keys; or as `read_command_line`.
    """
    line = read_command_line(arguments)
    if line.multirun or line.shows not in ("", "help", "cfg"):
        flag = "-m" if line.multirun else f"--{line.shows.replace('_', '-')}"
        fix = "Flags here: --help, --cfg job, --config FILE, --config-dir FOLDER."
        raise ConfigError([Problem(flag, "is for python -m minimind_dpo.train", fix)])
    if line.shows == "help":
        print(f"{usage.strip()}\n\n{_keys_text(name)}")
        sys.exit(DONE)
    names = [item.name for item in fields(own)]  # type: ignore[arg-type]
    overrides = parsed(line.overrides)
    values = {o.get_key_element(): _value(o) for o in overrides if o.get_key_element() in names}
    rest = [o for o in overrides if o.get_key_element() not in names]
    _refuse_near_names(rest, names)
    line = replace(line, overrides=tuple(str(o.input_line) for o in rest))
    command = Command(_filled(own, values), line)
    if line.shows == "cfg":
        run = values.get("run")
        print(to_yaml(command.config(run_folder(run) if isinstance(run, str) else None)), end="")
        sys.exit(DONE)
    return command


def end(command: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command on what was typed; end with an exit code, wrong input told in a sentence."""
    try:
        sys.exit(command(sys.argv[1:]) or DONE)
    except _WRONG_INPUT as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except BrokenPipeError:
        # What is left of the output must not be written when Python ends either.
        lead_nowhere(sys.stdout.fileno())
        sys.exit(NOT_READ)
    except (OSError, RuntimeError) as error:
        sentence = os_errors.explain(error)
        if sentence is None:
            raise
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        # Of training, this is before its own handlers are in place: there is nothing to save yet.
        sys.exit(INTERRUPTED)


def _value(override: Override) -> Any:
    """`format=hf,gguf`, several values of a sweep elsewhere, is a list here."""
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_iterator()]
    return override.value()


def _filled(own: type[T], values: dict[str, Any]) -> T:
    problems: list[Problem] = []
    node = OmegaConf.structured(own)
    for key, value in values.items():
        try:
            OmegaConf.update(node, key, value)
        except OmegaConfBaseException as error:
            problems.append(Problem(key, str(error).splitlines()[0], value=value))
    filled: Any = OmegaConf.to_object(node)
    problems += limit_problems(filled)
    if problems:
        raise ConfigError(problems)
    return filled


def _refuse_near_names(overrides: Sequence[Override], own: Sequence[str]) -> None:
    """Keys that are no part of the configuration, and look like one of the command's own."""
    known = {part for key in schema_keys() for part in (key, key.split(".")[0])}
    problems = [
        Problem(key, "there is no such key", f"Did you mean {near}?", override.value())
        for override in overrides
        if (key := override.key_or_group) not in known and (near := nearest(key, own))
    ]
    if problems:
        raise ConfigError(problems)


def _keys_text(name: str) -> str:
    return (CONF_DIR / "commands" / f"{name}.yaml").read_text(encoding="utf-8").strip()
