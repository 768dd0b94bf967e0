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
from dataclasses import replace
from typing import Any

from minimind_dpo.config.command_line import CommandLine, completed, read_command_line
from minimind_dpo.config.compose import compose, primary_config
from minimind_dpo.config.jobs import check_jobs
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
    line = completed(read_command_line(arguments))
    if line.shows:
        _show(line)
    elif line.multirun:
        _sweep(line)
    else:
        config = compose(line.overrides, line.source)
        _validate(config, _launched_world_size(), read_checkpoints=not _is_further_rank())
        if line.note:
            print(line.note)
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


def _show(line: CommandLine) -> None:
    """Help and `--cfg` are Hydra's own; what they print may be cut short by its reader."""
    if line.shows in ("cfg", "info"):
        compose(line.overrides, line.source)
    elif line.shows == "hydra_help":
        line = replace(line, overrides=())  # Hydra composes its own settings alone for it
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            _through_hydra(line)
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


def _sweep(line: CommandLine) -> None:
    # Another launcher's jobs may run on another machine, with other devices and files.
    here = not any(override.startswith("hydra/launcher=") for override in line.overrides)
    check_jobs(line, _validate if here else None)
    from minimind_dpo.run.sweep import SweepEnd, register_launcher

    register_launcher()
    _through_hydra(line)
    if SweepEnd.failed:
        sys.exit(FAILED)


def _through_hydra(line: CommandLine) -> None:
    import hydra
    from omegaconf import DictConfig

    name = primary_config(line.source, line.overrides)

    @hydra.main(config_path=str(line.source.conf), config_name=name, version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        from minimind_dpo.run.sweep import run_job

        return run_job(cfg, line.source)

    sys.argv[1:] = [*line.overrides, *line.flags]
    task()


if __name__ == "__main__":
    main()
