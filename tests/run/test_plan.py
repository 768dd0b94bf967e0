"""What is said before training is what Lightning then does, and what cannot be done is refused."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from composed import composed
from lightning.pytorch.strategies import SingleDeviceStrategy
from rich.console import Console
from torch import Tensor, nn
from training_support import quiet_trainer

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.demo import PREFERENCES
from minimind_dpo.objective.check_options import padded_mean_warning
from minimind_dpo.run.build import build_datamodule, build_tokenizer
from minimind_dpo.run.plan import RunPlan, print_plan, state_bytes

pytestmark = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")


def configured(tmp_path: Path, *overrides: str, pairs: int = 208) -> Config:
    """Some pairs of the demo; 8 a micro-batch, no validation."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(PREFERENCES.read_text().splitlines()[:pairs]))
    files = (f"data.train={file}", f"data.cache_dir={tmp_path / 'cache'}", "data.val=null")
    sizes = ("data.batch_size=8", "data.val_fraction=0")
    return composed(["experiment=demo", *files, *sizes, *overrides])


def prepared(config: Config) -> PreferenceDataModule:
    data = build_datamodule(config, build_tokenizer(config), progress=False)
    data.prepare_data()
    return data


class Counting(L.LightningModule):
    """Trains nothing; counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.pairs = self.validated = 0

    def training_step(self, batch: PreferenceBatch) -> Tensor:
        self.pairs += batch.num_pairs
        return self.weight * 0

    def validation_step(self, batch: PreferenceBatch) -> None:
        self.validated += batch.num_pairs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


RUNS: dict[str, tuple[list[str], int, int, int]] = {
    # Overrides, then steps, pairs and validated pairs by hand: 208 pairs are 26 micro-batches of 8.
    "an epoch": ([], 26, 208, 0),
    "a share": (["trainer.limit_train_batches=0.5"], 13, 104, 0),
    "two epochs of a share": (
        ["trainer.limit_train_batches=0.5", "trainer.max_epochs=2"],
        26,
        208,
        0,
    ),
    "a share that cuts a step": (
        # 0.3 x 26 = 7 micro-batches: a step of 4 and one of 3.
        ["trainer.limit_train_batches=0.3", "trainer.accumulate_grad_batches=4"],
        2,
        56,
        0,
    ),
    "a number": (["trainer.limit_train_batches=3", "trainer.max_epochs=3"], 9, 72, 0),
    "steps": (["trainer.max_steps=5", "trainer.max_epochs=-1"], 5, 40, 0),
    "a cut window": (["trainer.accumulate_grad_batches=4"], 7, 208, 0),
    "whole windows alone": (
        ["trainer.accumulate_grad_batches=4", "data.drop_last=true"],
        6,
        192,
        0,
    ),
    # A tenth of 208 rounds to 21.
    "a split": (["data.val_fraction=0.1"], 24, 187, 21),
    "a share of validation": (
        ["data.val_fraction=0.1", "trainer.limit_val_batches=0.34"],
        24,
        187,
        8,
    ),
    "a development run": (["trainer.fast_dev_run=2", "data.val_fraction=0.1"], 2, 16, 16),
}


@pytest.mark.parametrize("case", RUNS)
def test_the_plan_is_what_lightning_does(case: str, tmp_path: Path) -> None:
    overrides, steps, pairs, validated = RUNS[case]
    config = configured(tmp_path, *overrides)
    data = prepared(config)
    plan = RunPlan.of(config, data)
    limits = ("max_epochs", "max_steps", "limit_train_batches", "limit_val_batches", "fast_dev_run")
    trainer = quiet_trainer(
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        num_sanity_val_steps=0,
        **{name: getattr(config.trainer, name) for name in limits},
    )
    module = Counting()
    trainer.fit(module, datamodule=data)
    assert (plan.steps, plan.val_pairs) == (steps, validated)
    assert (trainer.global_step, module.pairs) == (steps, pairs)
    epochs = config.trainer.max_epochs if "max_steps=5" not in str(overrides) else 5 / 26
    if not config.trainer.fast_dev_run:
        assert plan.train_pairs * epochs == pairs  # type: ignore[operator]
    assert module.validated == (validated * max(1, trainer.current_epoch) if validated else 0)


@pytest.mark.parametrize(
    ("overrides", "pairs", "message"),
    [
        (
            ["data.drop_last=true", "data.batch_size=32", "trainer.accumulate_grad_batches=8"],
            208,
            r"the 208 training pairs do not fill one optimizer step of 256 \(data.batch_size=32 x "
            r"trainer.accumulate_grad_batches=8 x 1 devices\).*set data.drop_last=false",
        ),
        (
            ["trainer.limit_train_batches=0.0001"],
            208,
            r"trainer.limit_train_batches=0.0001: of the 26 micro-batches of an epoch, this share "
            r"is less than one: .* at least 0.038",
        ),
        (
            ["trainer.limit_val_batches=0.0001", "data.val_fraction=0.1"],
            208,
            "trainer.limit_val_batches=0.0001: of the 3 micro-batches",
        ),
    ],
)
def test_a_run_without_a_step_is_refused_with_what_to_change(
    overrides: list[str], pairs: int, message: str, tmp_path: Path
) -> None:
    config = configured(tmp_path, *overrides, pairs=pairs)
    with pytest.raises(DataError, match=message):
        RunPlan.of(config, prepared(config))


@pytest.mark.parametrize(
    ("overrides", "every"),
    [([], 1), (["trainer.max_epochs=2"], 10), (["trainer.log_every_n_steps=4"], 4)],
)
def test_a_run_of_fewer_than_50_steps_has_a_point_at_each(
    overrides: list[str], every: int, tmp_path: Path
) -> None:
    config = configured(tmp_path, *overrides)
    assert RunPlan.of(config, prepared(config)).log_every == every


def said(config: Config, data: PreferenceDataModule, policy: nn.Module) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        print_plan(RunPlan.of(config, data), config, quiet_trainer(), policy, console)
    return captured.get()


def test_one_block_says_what_will_happen(tmp_path: Path) -> None:
    config = configured(tmp_path, "trainer.accumulate_grad_batches=4", "data.val_fraction=0.1")
    policy = nn.Linear(10, 10, bias=False)
    lines = said(config, prepared(config), policy).splitlines()
    assert [re.sub(r"  +", " ", line).strip() for line in lines] == [
        "This run",
        "pairs 187 for training, 21 for validation, split off data.train",
        "a step 8 x 4 x 1 = 32 pairs (batch size x accumulation x devices)",
        "steps 6 (1 epoch of 6); a point of the curves every step",
        "loss sigmoid, beta 0.1",
        "learning rate 0.002 at its peak, cosine, warmup of 1 steps",
        "device cpu, 32-true",
        "trained 100 of 100 parameters",
        "a state 0.0 MB on disk, up to 3 at a time",
        "warning a run of 6 steps moves little: train on more pairs, for more epochs "
        "(trainer.max_epochs), or with fewer pairs a step (trainer.accumulate_grad_batches)",
    ]


def test_a_reduction_that_divides_beta_is_warned_of_before_training(tmp_path: Path) -> None:
    config = configured(tmp_path, "loss.reduction=padded_mean", "data.layout=padded")
    text = said(config, prepared(config), nn.Linear(10, 10, bias=False))
    warning = padded_mean_warning(config.loss.beta, config.data.max_length - 1)
    assert warning in " ".join(text.split())


def test_adapters_at_a_rate_for_all_weights_are_warned_of(tmp_path: Path) -> None:
    config = configured(tmp_path, "model.lora.r=8", "optim.lr=5e-7", "trainer.max_epochs=4")
    policy = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 4, bias=False))
    policy[0].requires_grad_(False)
    text = said(config, prepared(config), policy)
    assert "40 of 140 parameters (adapters of rank 8)" in text
    assert "optim.lr=5e-07 is a rate for all weights" in text
    assert state_bytes(policy) == 4 * (140 + 2 * 40)


def test_full_precision_on_a_gpu_says_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path)
    data = prepared(config)
    assert "cpu, 32-true (" not in said(config, data, nn.Linear(2, 2))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("cuda"))
    text = said(config, data, nn.Linear(2, 2))
    assert "H100, 32-true (full precision: no flash attention, several times" in text
