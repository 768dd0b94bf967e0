"""Check every value of a configuration before anything is loaded; raise once, with all problems.

Types and names of keys are Hydra's business (`minimind_dpo.config`). Here are choices, ranges,
values that exclude each other, files that have to exist, and what this machine has; last, whether
model, tokenizer and reference are whole and fit each other, which takes reading them. No line of
data is read, and no weight is kept.
"""

from __future__ import annotations

from minimind_dpo.config import check_execution as execution
from minimind_dpo.config import check_inputs as inputs
from minimind_dpo.config import check_values as values
from minimind_dpo.config.check_execution import Machine, parse_devices
from minimind_dpo.config.check_inputs import loss_options
from minimind_dpo.config.compose import ConfigError
from minimind_dpo.config.schema import Config

__all__ = ["Machine", "loss_options", "parse_devices", "validate"]


def validate(
    config: Config,
    *,
    machine: Machine | None = None,
    world_size: int | None = None,
    read_checkpoints: bool = False,
) -> None:
    """Refuse a configuration that cannot work, before a run folder exists.

    Args:
        config: From `minimind_dpo.config.compose.compose` or `to_config`.
        machine: What to train on; asked of torch where None.
        world_size: Processes that a launcher (torchrun, SLURM) started, where one did.
        read_checkpoints: Look into model, tokenizer and reference as well: seconds, since
            transformers is imported for it.

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
        *execution.product_problems(config, machine),
        *execution.compile_problems(config),
        *execution.callback_problems(config),
    ]
    if read_checkpoints:
        from minimind_dpo.config.check_models import checkpoint_problems

        found += checkpoint_problems(config, {problem.key for problem in found})
    if found:
        raise ConfigError(found)
