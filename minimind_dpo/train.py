"""Train: `python -m minimind_dpo.train [key=value ...]`.

Without arguments the embedded demo runs. Exit codes: 0 done, 1 failed, 2 wrong input, 130 stopped
by Ctrl-C and 143 by SIGTERM or SIGUSR1, with the state saved.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from minimind_dpo.config import (
    CONF_DIR,
    ConfigError,
    apply_default_experiment,
    compose,
    compose_problem,
    register_schemas,
)
from minimind_dpo.schema import Config

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def main() -> None:
    """Entry point of the module and of the console script."""
    try:
        _run()
    except KeyboardInterrupt:
        # Before the run's own handlers are in place: there is nothing to save yet.
        sys.exit(INTERRUPTED)


def _run() -> None:
    arguments = apply_default_experiment(sys.argv[1:])
    if any(argument.startswith("-") for argument in arguments):
        _through_hydra(sys.argv[1:])
        return
    if arguments != sys.argv[1:]:
        print("Nothing named to train on: running the embedded demo (experiment=demo).")
    config = _checked_config(arguments)
    # Only now: torch, transformers and Lightning take seconds to import, a typo should not.
    from minimind_dpo.fit import fit_from_command_line

    sys.exit(fit_from_command_line(config))


def _checked_config(arguments: Sequence[str]) -> Config:
    """Compose and validate; ends the program with 2 and a message where something is wrong."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = compose(arguments)
        from minimind_dpo.validation import validate

        validate(config, world_size=_launched_world_size(), read_checkpoints=True)
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"Error: {ConfigError([compose_problem(error, arguments)])}", file=sys.stderr)
    else:
        return config
    sys.exit(WRONG_INPUT)


def _launched_world_size() -> int | None:
    """Processes that torchrun or SLURM started; None where Lightning starts them itself."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    # As Lightning tells a job's tasks from a shell that was opened inside a job.
    batch = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")
    tasks = os.environ.get("SLURM_NTASKS")
    return int(tasks) if tasks and batch else None


def _through_hydra(arguments: Sequence[str]) -> None:
    """Help, `--cfg` and multirun are Hydra's own."""
    import hydra
    from omegaconf import DictConfig

    register_schemas()

    @hydra.main(config_path=str(CONF_DIR), config_name="config", version_base="1.3")
    def task(cfg: DictConfig) -> float | None:
        from minimind_dpo.sweep import run_job

        return run_job(cfg)

    from minimind_dpo.sweep import SweepEnd, register_launcher

    register_launcher()
    sys.argv[1:] = apply_default_experiment(arguments)
    task()
    if SweepEnd.failed:
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
