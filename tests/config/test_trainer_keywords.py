"""`trainer.*` is Lightning's Trainer, keyword for keyword."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

from minimind_dpo.config.compose import compose
from minimind_dpo.training.option_values import parse_devices
from minimind_dpo.training.options import STRATEGIES, TrainerOptions

# Made by this program from other groups, or by its run folder.
OURS = {"logger", "callbacks", "plugins", "default_root_dir", "enable_checkpointing"}

# One value each: the data module plans the batches of all ranks, a whole validation runs at step 0,
# curves and checkpoints are always there; or no meaning at all, as the model is a language model
# that is neither tested nor asked for predictions.
FIXED = {
    "use_distributed_sampler",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "num_sanity_val_steps",
    "barebones",
    "enable_autolog_hparams",
    "model_registry",
    "sync_batchnorm",
    "limit_test_batches",
    "limit_predict_batches",
}

# Where our default differs from Lightning's, on purpose.
CHANGED: dict[str, Any] = {
    "devices": 1,
    "precision": "32-true",
    "max_epochs": 1,
    "val_check_interval": 0.25,
    "enable_progress_bar": True,
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "gradient_clip_algorithm": "norm",
}
PARAMETERS = inspect.signature(Trainer.__init__).parameters


def test_the_schema_has_every_keyword_of_lightning_that_a_run_can_choose() -> None:
    ours = {field.name for field in dataclasses.fields(TrainerOptions)}
    assert ours == set(PARAMETERS) - OURS - FIXED - {"self"}


def test_defaults_are_lightning_s_but_for_those_that_are_ours() -> None:
    config = dataclasses.asdict(compose().trainer)
    expected = {name: PARAMETERS[name].default for name in config} | CHANGED
    assert config == expected


def test_lightning_takes_the_defaults_as_they_are() -> None:
    values = dataclasses.asdict(compose(["trainer.accelerator=cpu"]).trainer)
    values |= {"enable_progress_bar": False, "fast_dev_run": True}
    assert Trainer(**values).accumulate_grad_batches == 1


def test_strategies_offered_are_those_of_lightning() -> None:
    assert set(STRATEGIES) - {"auto"} <= set(StrategyRegistry.available_strategies())
    assert {"cpu", "cuda", "mps", "tpu"} == set(AcceleratorRegistry.available_accelerators())


@pytest.mark.parametrize(
    ("devices", "parsed"),
    [
        (2, 2),
        ("3", 3),
        ("auto", None),
        (-1, None),
        ("-1", None),
        ([0, 2], [0, 2]),
        ("0,2", [0, 2]),
        ("1,", [1]),
    ],
)
def test_devices_are_read_as_lightning_reads_them(devices: Any, parsed: Any) -> None:
    assert parse_devices(devices) == parsed


@pytest.mark.parametrize(
    "devices", [0, -2, 1.5, True, None, "two", "", ",", [], [0, 0], [-1], ["a"], {}]
)
def test_devices_that_mean_nothing_are_refused(devices: Any) -> None:
    with pytest.raises((ValueError, TypeError, IndexError)):
        parse_devices(devices)
