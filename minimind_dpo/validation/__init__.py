"""Check every value of a configuration before anything is loaded; raise once, with all problems.

Types and names of keys are Hydra's business (`minimind_dpo.config`). Here are choices, ranges,
values that exclude each other, files that have to exist, and what this machine has. No model and
no line of data is read.
"""

from __future__ import annotations

from minimind_dpo.config import ConfigError
from minimind_dpo.schema import Config
from minimind_dpo.validation import execution, inputs, values
from minimind_dpo.validation.execution import Machine, parse_devices
from minimind_dpo.validation.inputs import loss_options

__all__ = ["Machine", "loss_options", "parse_devices", "validate"]


def validate(
    config: Config, *, machine: Machine | None = None, world_size: int | None = None
) -> None:
    """Refuse a configuration that cannot work, before a run folder exists.

    Args:
        config: From `minimind_dpo.config.compose` or `to_config`.
        machine: What to train on; asked of torch where None.
        world_size: Processes that a launcher (torchrun, SLURM) started, where one did.

    Raises:
        ConfigError: With every problem that was found.
    """
    machine = machine or Machine.detect()
    found = [
        *values.choice_problems(config),
        *values.range_problems(config),
        *inputs.run_problems(config),
        *inputs.model_problems(config),
        *inputs.data_problems(config),
        *inputs.loss_problems(config),
        *inputs.optim_problems(config),
        *execution.precision_problems(config),
        *execution.duration_problems(config),
        *execution.trainer_problems(config),
        *execution.device_problems(config, machine, world_size),
        *execution.compile_problems(config),
        *execution.callback_problems(config),
    ]
    if found:
        raise ConfigError(found)
