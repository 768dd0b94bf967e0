"""Train: `python -m minimind_dpo.train [key=value ...]`.

Without arguments the embedded demo runs. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped
by Ctrl-C and 143 by SIGTERM or SIGUSR1; the last line then says what is saved.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from minimind_dpo.config.command_line import CommandLine, check_jobs, read_command_line
from minimind_dpo.config.compose import (
    CONF_DIR,
    apply_default_experiment,
    compose,
    register_schemas,
)
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
LAUNCHER_VARIABLE = "MINIMIND_DPO_LAUNCHER"
"""Holds the number of the process that started a further rank; set by `training.ranks`."""
NOT_READ = 141
"""What a shell reports of a program whose output nobody reads any more (128 + SIGPIPE)."""


def main() -> None:
    """Entry point of the module and of the console script."""
    try:
        _run(sys.argv[1:])
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    except KeyboardInterrupt:
        # Before the run's own handlers are in place: there is nothing to save yet.
        sys.exit(INTERRUPTED)


def _run(arguments: Sequence[str]) -> None:
    line = read_command_line(arguments)
    overrides = apply_default_experiment(line.overrides, line.flags)
    if line.shows:
        _show(line, overrides)
    elif line.flags:
        _sweep(line, overrides)
    else:
        config = compose(overrides)
        _validate(config, _launched_world_size(), read_checkpoints=not _is_further_rank())
        if tuple(overrides) != line.overrides:
            print("Nothing named to train on: running the embedded demo (experiment=demo).")
        # Only now: torch, transformers and Lightning take seconds to import, a typo should not.
        from minimind_dpo.run.fit import fit_from_command_line

        sys.exit(fit_from_command_line(config))


def _validate(config: Config, world_size: int | None = None, read_checkpoints: bool = True) -> None:
    from minimind_dpo.config.check import validate

    validate(config, world_size=world_size, read_checkpoints=read_checkpoints)


def _is_further_rank() -> bool:
    """Whether a run on this machine started this process, once it had looked into its models.

    Ranks that torchrun or SLURM started look for themselves, so that all give the same answer.
    """
    further = os.environ.get("LOCAL_RANK", "0") != "0"
    return further and os.environ.get(LAUNCHER_VARIABLE) == str(os.getppid())


def _launched_world_size() -> int | None:
    """Processes that torchrun or SLURM started; None where Lightning starts them itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # As Lightning tells a job's tasks from a shell that was opened inside a job.
    batch = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    tasks = os.environ.get("SLURM_NTASKS")
    return int(tasks) if tasks and batch else None


def _show(line: CommandLine, overrides: Sequence[str]) -> None:
    """Help and `--cfg` are Hydra's own; what they print may be cut short by its reader."""
    if line.composes and not line.own_config:
        check_jobs(overrides)
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            _through_hydra([*overrides, *line.flags])
        except SystemExit as end:
            code = end.code
    try:
        sys.stdout.write(shown.getvalue())
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left of it must not be written when Python ends either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NOT_READ)
    sys.exit(code)


def _sweep(line: CommandLine, overrides: Sequence[str]) -> None:
    if not line.own_config:
        # Another launcher's jobs may run on another machine, with other devices and files.
        here = not any(override.startswith("hydra/launcher=") for override in overrides)
        check_jobs(overrides, _validate if here else None)
    from minimind_dpo.run.sweep import SweepEnd, register_launcher

    register_launcher()
    _through_hydra([*overrides, *line.flags])
    if SweepEnd.failed:
        sys.exit(FAILED)


def _through_hydra(arguments: list[str]) -> None:
    import hydra
    from omegaconf import DictConfig

    register_schemas()

    @hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        from minimind_dpo.run.sweep import run_job

        return run_job(cfg)

    sys.argv[1:] = arguments
    task()


if __name__ == "__main__":
    main()
