"""Train: `python -m minimind_dpo.train [key=value ...]`.

Without arguments the embedded demo runs. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped
by Ctrl-C and 143 by SIGTERM, SIGHUP or SIGUSR1; the last line then says what is saved.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from minimind_dpo import launch
from minimind_dpo.config.command_line import (
    CommandLine,
    completed,
    completed_values,
    quoted,
    read_command_line,
)
from minimind_dpo.config.commands import check, end
from minimind_dpo.config.compose import compose, primary_config
from minimind_dpo.config.jobs import Grid, check_jobs, for_search, for_sweep
from minimind_dpo.output import keep_output


def main() -> None:
    """Entry point of the module and of the console script."""
    end(_run)


def _run(arguments: Sequence[str]) -> None:
    launch.end_with_sweep()
    line = completed(read_command_line(arguments))
    if not line.shows:
        keep_output()
    if line.note and not line.shows and launch.rank() == 0:
        print(line.note)
    if line.shows:
        _show(line)
    elif line.multirun:
        _sweep(line)
    else:
        config = compose(line.overrides, line.source)
        # Ranks that torchrun or srun started look into the models themselves.
        apart = launch.launched_by_rank()
        check(config, world_size=launch.world_size(), read_checkpoints=not apart)
        # Only now: torch, transformers and Lightning take seconds to import, a typo should not.
        from minimind_dpo.run.fit import fit_from_command_line

        sys.exit(fit_from_command_line(config))


def _show(line: CommandLine) -> None:
    """Help and `--cfg` are Hydra's own; what they print may be cut short by its reader."""
    if line.shows in ("cfg", "info"):
        compose(line.overrides, line.source)
    elif line.shows == "hydra_help":
        line = replace(line, overrides=())  # Hydra composes its own settings alone for it
    elif line.shows == "shell_completion" and (values := completed_values()):
        print("\n".join(values))
        return
    code: Any = 0
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            _through_hydra(line)
        except SystemExit as end:
            code = end.code
    sys.stdout.write(shown.getvalue())
    sys.exit(code)


def _sweep(line: CommandLine) -> None:
    line = for_sweep(line)
    # Another launcher's jobs may run on another machine, with other devices and files.
    launchers = [text for text in line.overrides if text.startswith("hydra/launcher=")]
    here = all(text.endswith(("=basic", "=joblib")) for text in launchers)
    grid = Grid.read(line)
    first = check_jobs(grid, line.source, partial(check, read_checkpoints=True) if here else None)
    line = for_search(line, grid, first.sweep.objective)
    folder = f"hydra.sweep.dir={quoted(str(grid.folder))}"
    line = replace(line, overrides=(*line.overrides, folder))
    from minimind_dpo.run.sweep import run_sweep

    sys.exit(run_sweep(grid.folder, lambda: _through_hydra(line, grid.keys)))


def _through_hydra(line: CommandLine, swept: frozenset[str] = frozenset()) -> None:
    import hydra
    from omegaconf import DictConfig

    name = primary_config(line.source, line.overrides)

    @hydra.main(config_path=str(line.source.conf), config_name=name, version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        from minimind_dpo.run.sweep import run_job

        return run_job(cfg, line.source, swept)

    sys.argv[1:] = [*line.overrides, *line.flags]
    task()


if __name__ == "__main__":
    main()
