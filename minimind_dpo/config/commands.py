"""The command line of what is not training: its own keys, and the configuration beside them.

A command's own keys are the fields of a dataclass; their meaning is in `conf/commands/*.yaml`. All
other keys are the configuration's, composed as for training, over a run's own where one is named.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, TypeVar

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minimind_dpo import launch, os_errors
from minimind_dpo.config.command_line import CommandLine, parsed, read_command_line
from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR, Source, run_folder_of
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.exit_codes import DONE, INTERRUPTED, NOT_READ, WRONG_INPUT
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.locate import EXPORT
from minimind_dpo.options.limits import as_list, limit_problems
from minimind_dpo.options.problem import ConfigError, Problem, nearest
from minimind_dpo.output import flush_output, keep_output

T = TypeVar("T")

_EVERY: Final = (
    *("data.chat_template", "data.template_options", "data.text_as_turns", "data.empty_think"),
    *("log_level", "seed", "threads", "trainer.accelerator"),
    *("model.dtype", "model.matmul_precision", "model.matmul_library", "model.trust_remote_code"),
)
"""Beginnings of the keys that every command reads: how a prompt is written, how a model runs."""
_EXPORTED: Final = ("model.tokenizer", "model.config")
"""What an exported Hugging Face folder holds itself."""
_NAMING: Final = ("model", "model.path", "experiment")
"""What names a model, as a run does."""
_FLAGS: Final = {"--cfg", "job", "--resolve", "--help"}

_WRONG_INPUT: Final = (ConfigError, CheckpointError, DataError)


@dataclass(frozen=True, slots=True)
class Command(Generic[T]):
    """What was typed.

    Attributes:
        name: Of the command.
        own: The command's own keys.
        reads: Beginnings of the keys of the configuration that it reads beside those of a model.
        typed: What else was typed, by key or group.
        line: The same, with which a configuration is composed.
    """

    name: str
    own: T
    reads: tuple[str, ...]
    typed: dict[str, Override]
    line: CommandLine

    def opened(self, run: str | None) -> tuple[Config, Path | None]:
        """The configuration, checked as far as it is read, and the folder of the run, if any."""
        folder = None if run is None else run_folder(run)
        config = self.config(folder)
        check(config, only=self.keys(folder))
        return config, folder

    def keys(self, run: Path | None) -> tuple[str, ...]:
        """Beginnings of the keys that it reads, beside a run's folder or without one."""
        if run is None:
            return (*_EVERY, *self.reads, *_EXPORTED, "model.path", "model.adapters")
        return (*_EVERY, *self.reads, *(() if exported(run) else _EXPORTED))

    def config(self, run: Path | None) -> Config:
        """The configuration, over that of a run's folder where there is one.

        A run's export has the chat template that it trained with, whose file may be gone.

        Raises:
            ConfigError: As `compose`; or there is no model, or one is named beside the run; or a
                key was typed that the command does not read.
        """
        source = self.line.source
        if run is not None:
            named = [o.input_line for key, o in self.typed.items() if key in _NAMING]
            if named or source.file is not None:
                why = f"names a run, and {named[0] if named else '--config'} something else"
                raise ConfigError([Problem("run", why, "Give one of them.", str(run))])
            source = Source(source.conf, run / "config.yaml", resumed=run)
        config = compose(self.line.overrides, source)
        if run is None and not config.model.path:
            fix = "Name a run's folder, or a model: run=RUN, or model.path=MODEL."
            raise ConfigError([Problem("run", "is missing, and so is model.path", fix)])
        self._refuse_ignored(run)
        left_out = config.data.chat_template == "none" or "data.chat_template" in self.typed
        if run is not None and exported(run) and not left_out:
            config.data.chat_template = "auto"
        return config

    def _refuse_ignored(self, run: Path | None) -> None:
        """Refuse what was typed and is not read, by itself or beside a run."""
        read, alone = self.keys(run), self.keys(None)
        problems = [
            Problem(key, f"is not read by {self.name}{beside}", "Leave it out.", override.value())
            for key, override in self.typed.items()
            if key not in ("experiment", "hydra.searchpath") and not _is_among(key, read)
            for beside in [f" beside run={run}" if _is_among(key, alone) else ""]
        ]
        if problems:
            raise ConfigError(problems)


def _is_among(key: str, beginnings: Sequence[str]) -> bool:
    """Whether a key, or one of a group's, begins like one of these."""
    return any(f"{key}.".startswith(f"{b}.") or b.startswith(f"{key}.") for b in beginnings)


def exported(run: Path) -> bool:
    """Whether a run has exported a Hugging Face folder, which has its tokenizer."""
    return (run / EXPORT / "config.json").is_file()


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


def read_command(
    arguments: Sequence[str], name: str, own: type[T], reads: tuple[str, ...], usage: str
) -> Command[T]:
    """Take a command's own keys out of a command line; show what is asked to be shown, and end.

    Args:
        arguments: As typed.
        name: Of the command, and of its file in `conf/commands`.
        own: Dataclass of its own keys.
        reads: As `Command.reads`.
        usage: What `--help` begins with.

    Raises:
        ConfigError: With all that is wrong with the own keys; or as `read_command_line`.
    """
    line = read_command_line(arguments)
    others = [flag for flag in line.flags if flag not in _FLAGS]
    if others:
        flag = others[0] if others[0].startswith("-") else f"--cfg {others[0]}"
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
    typed = {override.key_or_group: override for override in rest}
    command = Command(name, _filled(own, values), reads, typed, line)
    if line.shows == "cfg":
        runs = [run_folder(run) for run in as_list(values.get("run"))]
        print(to_yaml(command.config(runs[0] if runs else None)), end="")
        sys.exit(DONE)
    return command


def check(config: Config, **how: Any) -> None:
    """As `validate`, in the process of a command: what it imports later writes into no home folder.

    Lightning imports torchmetrics, which imports matplotlib, where that is installed; its list of
    fonts goes into the cache.
    """
    fonts = os.path.abspath(os.path.join(config.data.cache_dir, "matplotlib"))
    os.environ.setdefault("MPLCONFIGDIR", fonts)
    # Only now: torch takes seconds to import, a typo should not.
    from minimind_dpo.config.check import validate

    validate(config, **how)


def end(command: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Run a command on what was typed; end with an exit code, wrong input told in a sentence."""
    keep_output("stderr")
    try:
        launch.check_environment()
        launch.let_memory_grow()
        try:
            sys.exit(command(sys.argv[1:]) or DONE)
        finally:
            flush_output()
    except _WRONG_INPUT as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except BrokenPipeError:
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
