"""What a run will do, known before its folder exists: pairs, steps, points of the curves.

The numbers are those of Lightning's loops and of the plan of optimizer steps; what they say of the
run is printed once, before training.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from minimind_dpo import launch
from minimind_dpo.config.schema import Config
from minimind_dpo.data.batches.division import Division
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.objective.check_options import padded_mean_warning
from minimind_dpo.training.optim import warmup_steps
from minimind_dpo.training.option_values import parse_devices
from minimind_dpo.training.resume.callback import KEPT

SHORT = 50
"""A run of fewer steps has a point of its curves at each step."""
FEW = 20
"""A run of fewer steps moves little."""
LOW_FOR_ADAPTERS = 2e-6
"""Adapters start at zero: below such a learning rate they stay there."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Numbers of a run.

    Attributes:
        batch_size: Pairs of a micro-batch on one rank, on average.
        division: How the trainer will divide the data.
        train_pairs: Pairs that an epoch visits.
        val_pairs: Pairs that a validation visits.
        steps_per_epoch: Optimizer steps, a cut one counted.
        steps: Of the whole run; None where only its time is bounded.
        log_every: Optimizer steps between points of the curves.
        cut: Why a micro-batch has its size; empty where that was given.
    """

    batch_size: int
    division: Division
    train_pairs: int
    val_pairs: int
    steps_per_epoch: int
    steps: int | None
    log_every: int
    cut: str = ""

    @classmethod
    def of(cls, config: Config, data: PreferenceDataModule) -> RunPlan:
        """The plan of a configuration.

        Args:
            config: Checked.
            data: Prepared; it is set up here.

        Raises:
            DataError: There is no pair, or no optimizer step, to train on.
        """
        trainer, dev_run = config.trainer, int(config.trainer.fast_dev_run)
        division = Division(
            trainer.accumulate_grad_batches,
            world_size(config),
            limit_train=dev_run or trainer.limit_train_batches,
            limit_val=dev_run or trainer.limit_val_batches,
        )
        data.setup("fit")
        sampler = data.train_sampler(division)
        bounds = [trainer.max_steps, sampler.steps * (trainer.max_epochs or -1)]
        bounds = [dev_run] if dev_run else [bound for bound in bounds if bound >= 0]
        steps = min(bounds, default=None)
        short = steps is not None and steps < SHORT
        return cls(
            data.batch_size,
            division,
            len(sampler.visited(1)),
            len(data.val_sampler(division).visited(1)) if len(data.val_rows) else 0,
            sampler.steps,
            steps,
            trainer.log_every_n_steps or (1 if short else 10),
        )

    @property
    def pairs_per_step(self) -> int:
        """Pairs of a whole optimizer step."""
        return self.batch_size * self.division.accumulate * self.division.world_size


def world_size(config: Config) -> int:
    """Processes that share an optimizer step."""
    launched, devices = launch.world_size(), parse_devices(config.trainer.devices)
    if launched is not None:
        return launched
    if devices is None:
        devices = 1 if config.trainer.accelerator == "cpu" else max(1, torch.cuda.device_count())
    return (len(devices) if isinstance(devices, list) else devices) * config.trainer.num_nodes


def print_plan(
    plan: RunPlan, config: Config, trainer: L.Trainer, policy: nn.Module, console: Console
) -> None:
    """Say before training what will happen."""
    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify, grid.title_style = "This run", "left", "bold"
    for name, text in _facts(plan, config, trainer, policy):
        grid.add_row(name, Text(text))
    for text in _warnings(plan, config):
        grid.add_row(Text("warning", "yellow"), Text(text, "yellow"))
    console.print(grid)


def state_bytes(policy: nn.Module) -> int:
    """Size of a resume state: the weights, and two moments of those that are trained."""
    moments = sum(2 * p.nbytes for p in policy.parameters() if p.requires_grad)
    return moments + sum(p.nbytes for p in policy.parameters())


def _facts(
    plan: RunPlan, config: Config, trainer: L.Trainer, policy: nn.Module
) -> list[tuple[str, str]]:
    split = ", split off data.train" if plan.val_pairs and not config.data.val else ""
    ranks, accumulate = plan.division.world_size, plan.division.accumulate
    total = sum(p.numel() for p in policy.parameters())
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    adapters = f" (adapters of rank {config.model.lora.r})" if config.model.lora.r else ""
    every = "every step" if plan.log_every == 1 else f"every {plan.log_every} steps"
    root = trainer.strategy.root_device
    device = torch.cuda.get_device_name(root) if root.type == "cuda" else root.type
    full = root.type == "cuda" and trainer.precision == "32-true"
    cost = " (full precision: no flash attention, several times the time of 16-mixed)" * full
    checkpoint = config.callbacks.checkpoint
    best = max(0, checkpoint.save_top_k) if plan.val_pairs else 0
    kept = (KEPT if checkpoint.save_last else 0) + best
    rows = [
        ("pairs", f"{plan.train_pairs:,} for training, {plan.val_pairs:,} for validation{split}"),
        (
            "a step",
            f"{plan.batch_size} x {accumulate} x {ranks} = {plan.pairs_per_step} pairs "
            "(batch size x accumulation x devices)",
        ),
        ("steps", f"{_steps(plan)}; a point of the curves {every}"),
        ("loss", f"{' + '.join(config.loss.type)}, beta {config.loss.beta:g}"),
        ("learning rate", _rate(plan, config)),
        ("device", f"{f'{ranks} x ' if ranks > 1 else ''}{device}, {trainer.precision}{cost}"),
        ("trained", f"{trained:,} of {total:,} parameters{adapters}"),
        ("a state", f"{state_bytes(policy) / 1e6:,.1f} MB on disk, up to {kept} at a time"),
    ]
    if plan.cut:
        rows.insert(2, ("a micro-batch", plan.cut))
    return rows


def _steps(plan: RunPlan) -> str:
    if plan.steps is None:
        return f"until trainer.max_time, {plan.steps_per_epoch:,} an epoch"
    epochs = plan.steps / plan.steps_per_epoch
    noun = "epoch" if epochs == 1 else "epochs"
    return f"{plan.steps:,} ({epochs:.3g} {noun} of {plan.steps_per_epoch:,})"


def _rate(plan: RunPlan, config: Config) -> str:
    schedule = config.schedule
    if schedule.name == "notebook":
        return f"{config.optim.lr:g}, notebook"
    warmup = warmup_steps(schedule, plan.steps or 0)
    return f"{config.optim.lr:g} at its peak, {schedule.name}, warmup of {warmup} steps"


def _warnings(plan: RunPlan, config: Config) -> list[str]:
    """What is seldom meant."""
    texts = []
    if plan.steps is not None and plan.steps < FEW:
        texts.append(
            f"a run of {plan.steps} steps moves little: train on more pairs, for more epochs "
            "(trainer.max_epochs), or with fewer pairs a step (trainer.accumulate_grad_batches)"
        )
    if config.model.lora.r and config.optim.lr < LOW_FOR_ADAPTERS:
        texts.append(
            f"optim.lr={config.optim.lr:g} is a rate for all weights: adapters start at zero and "
            "hardly move at it; 1e-5 to 1e-4 is usual for them"
        )
    if config.loss.reduction == "padded_mean":
        texts.append(padded_mean_warning(config.loss.beta, config.data.max_length - 1))
    return texts
