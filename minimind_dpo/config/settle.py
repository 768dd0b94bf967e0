"""What `auto` stands for on this machine, decided once, before anything reads the configuration.

A run's `config.yaml` has the decisions, so that a run which goes on computes as it did.
"""

from __future__ import annotations

import copy
import importlib.util
import shutil

from minimind_dpo.config.check import COMPILERS, Machine
from minimind_dpo.config.schema import Config


def settle(config: Config, machine: Machine | None = None) -> Config:
    """The configuration with a value for every `auto` that is a decision.

    Args:
        config: Checked; left as it is.
        machine: What there is; asked of torch where None.
    """
    machine = machine or Machine.detect()
    config = copy.deepcopy(config)
    on_cuda = config.trainer.accelerator in ("auto", "gpu", "cuda") and machine.cuda > 0
    if config.trainer.precision == "auto":
        config.trainer.precision = "16-mixed" if on_cuda else "32-true"
    if config.model.compile == "auto":
        config.model.compile = (
            on_cuda
            and not config.model.gradient_checkpointing
            and importlib.util.find_spec("triton") is not None
            and any(map(shutil.which, COMPILERS))
        )
    return config
