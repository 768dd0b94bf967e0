"""DPOModule: every pair of a step weighs the same, step 0 is ln 2, bad steps are refused."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training_support import loader, made_up_pairs, quiet_trainer, tiny_model

from minimind_dpo.objective.options import LossOptions
from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.lightning_seams import GuardedHalfPrecision
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.nan_guard import NotFiniteError, StepGuard
from minimind_dpo.training.optim import make_optimizer
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.reference import OnlineReference

LN2 = math.log(2)


def make_module(dtype: torch.dtype = torch.float32, **options: Any) -> DPOModule:
    return DPOModule(
        tiny_model(0, dtype),
        options.pop("reference", tiny_model(0, dtype)),
        optimizer=OptimizerOptions(lr=options.pop("lr", 1e-3), fused=False),
        schedule=ScheduleOptions("constant", warmup_ratio=0.0),
        **options,
    )


def weights(module: DPOModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.policy.named_parameters()}


@pytest.mark.parametrize(
    ("batch_size", "accumulate"), [(1, 8), (2, 4), (4, 2)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "sft", "simpo"])
def test_accumulation_changes_nothing(batch_size: int, accumulate: int, loss: str) -> None:
    """21 pairs, 8 a step: two whole steps and a cut one of 5, unevenly spread."""

    def train(batch_size: int, accumulate: int) -> tuple[dict[str, Tensor], dict[int, Any]]:
        reference = None if loss in ("sft", "simpo") else tiny_model(0, torch.float64)
        options = LossOptions(type=(loss,))
        module = make_module(torch.float64, loss=options, reference=reference)
        trainer = quiet_trainer(accumulate_grad_batches=accumulate, precision="64-true")
        trainer.fit(module, loader(made_up_pairs(21), batch_size, accumulate))
        return weights(module), trainer.logger.steps  # type: ignore[union-attr]

    expected, expected_curve = train(8, 1)
    got, curve = train(batch_size, accumulate)
    assert curve.keys() == expected_curve.keys() == {1, 2, 3}
    for step, metrics in expected_curve.items():
        for name, value in metrics.items():
            assert curve[step][name] == pytest.approx(value, rel=1e-9, abs=1e-12), (step, name)
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("layout", ["prefix_shared", "packed", "padded"])
@pytest.mark.parametrize(("precision", "gate"), [("32-true", 1e-6), ("bf16-mixed", 1e-3)])
def test_step_0_loss_is_ln_2(layout: str, precision: str, gate: float) -> None:
    module = DPOModule(tiny_model(layout=layout), tiny_model(layout=layout))
    trainer = quiet_trainer(max_steps=1, precision=precision)
    trainer.fit(module, loader(made_up_pairs(8), 8, layout=layout))
    first = trainer.logger.steps[1]  # type: ignore[union-attr]
    assert first["train/loss"] == pytest.approx(LN2, abs=gate)
    assert first["train/rewards/accuracies"] == 0.5
    assert first["train/rewards/ties"] == 1.0


def test_the_reference_is_not_part_of_the_module() -> None:
    module = make_module()
    assert isinstance(module.reference, OnlineReference)
    assert all(name.startswith("policy.") for name in module.state_dict())
    module.train()
    assert not module.reference.model.training
    assert not any(p.requires_grad for p in module.reference.model.parameters())


def test_pair_weights_scale_each_pairs_loss() -> None:
    from dataclasses import replace

    pairs = [replace(pair, weight=2.0) for pair in made_up_pairs(4)]
    plain, doubled = (quiet_trainer(max_steps=1, gradient_clip_val=None) for _ in range(2))
    plain.fit(make_module(), loader(made_up_pairs(4), 4))
    doubled.fit(make_module(), loader(pairs, 4))
    first, second = plain.logger.steps[1], doubled.logger.steps[1]  # type: ignore[union-attr]
    assert second["train/loss"] == pytest.approx(2 * LN2, rel=1e-6)
    assert second["train/grad_norm"] == pytest.approx(2 * first["train/grad_norm"], rel=1e-5)


def test_validation_is_an_exact_mean_over_pairs() -> None:
    """7 pairs in batches of 3, 3 and 1: a mean of batch means would weigh the last one thrice."""
    pairs = made_up_pairs(7)
    module = make_module(reference=tiny_model(1))
    together, apart = quiet_trainer(), quiet_trainer()
    together.validate(module, loader(pairs, 7), verbose=False)
    expected = dict(module.last_val_metrics)
    apart.validate(module, loader(pairs, 3), verbose=False)
    for name, value in expected.items():
        assert module.last_val_metrics[name] == pytest.approx(value, rel=1e-5), name


class Poisoned(DPOModule):
    """Loses its mind at some steps."""

    bad_steps: frozenset[int] = frozenset()
    bad_row = 5

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx in self.bad_steps:
            rows, losses = self.guard._pairs.pop()
            self.guard.watch(rows, losses * torch.where(rows == self.bad_row, math.nan, 1.0))
            return loss * math.nan
        return loss


def poisoned(bad_steps: set[int], max_bad_steps: int = 3) -> Poisoned:
    module = Poisoned(
        tiny_model(),
        tiny_model(),
        optimizer=OptimizerOptions(lr=1e-3, fused=False),
        guard=StepGuard(max_bad_steps, lambda row: f"made_up.jsonl:{row + 1}"),
    )
    module.bad_steps = frozenset(bad_steps)
    return module


def test_a_step_that_is_not_finite_is_not_taken_and_its_pair_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module = poisoned({1})
    before: dict[str, Tensor] = {}
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(module, loader(made_up_pairs(8), 4))
    before = weights(module)
    with caplog.at_level(logging.WARNING, logger="minimind_dpo"):
        trainer.fit_loop.max_epochs = 1
        trainer = quiet_trainer()
        module.bad_steps = frozenset({0, 1})
        trainer.fit(module, loader(made_up_pairs(8), 4))
    for name, tensor in before.items():
        assert torch.equal(module.state_dict()[f"policy.{name}"], tensor), name
    assert "made_up.jsonl:6" in caplog.text
    assert trainer.logger.steps[2]["train/guard/bad_steps"] == 2.0  # type: ignore[union-attr]


class States(Callback):
    """Weights and the optimizer's state after each step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        moments = trainer.optimizers[0].state_dict()["state"]
        flat = {f"{i}.{name}": v for i, row in moments.items() for name, v in row.items()}
        self.after.append({k: v.clone() for k, v in {**weights(pl_module), **flat}.items()})

    def moved(self, step: int) -> bool:
        """Whether a step, counted from 1, changed anything at all."""
        now, before = self.after[step - 1], self.after[step - 2]
        return any(not torch.equal(now[name], before[name]) for name in now)


@pytest.mark.parametrize("fused", [True, False])
def test_a_refused_step_leaves_weights_and_moments_bitwise_as_they_were(
    fused: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A fused optimizer skips by itself, as on CUDA; another one is left without gradients."""
    module, states = poisoned({2}), States()
    module.optimizer_options = OptimizerOptions(lr=1e-3, fused=fused)
    with caplog.at_level(logging.WARNING, logger="minimind_dpo"):
        quiet_trainer(callbacks=[states]).fit(module, loader(made_up_pairs(24), 4))
    assert [states.moved(step) for step in range(2, 7)] == [True, False, True, True, True]
    assert "optimizer step 3: loss or gradient is not finite" in caplog.text
    assert (module.guard.total, module.guard.in_a_row) == (1, 0)


def test_a_run_on_the_cpu_locks_no_memory_beside_a_card_that_it_leaves_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pytest.fail("memory was locked"))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=strategy)
    changed, module = WeightsChanged(), make_module()
    changed.setup(trainer, module, "fit")
    assert changed._start.keys() == dict(module.policy.named_parameters()).keys()


def test_a_fused_optimizer_that_is_not_allowed_is_refused() -> None:
    """Lightning's own 16-mixed leaves unscaling to a fused optimizer, after clipping."""
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"optim\.fused=true"):
        make_optimizer(model, OptimizerOptions(fused=True), allow_fused=False)
    assert not make_optimizer(model, OptimizerOptions(), allow_fused=False).defaults["fused"]


def test_losses_of_a_micro_batch_are_asked_once_whether_they_are_finite() -> None:
    asked = 0

    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal asked
            asked += func.overloadpacket is torch.ops.aten.abs and args[0].shape == (5,)
            return func(*args, **(kwargs or {}))

    guard = StepGuard()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], fused=True)
    with Count():
        for _ in range(3):
            guard.watch(torch.arange(5), torch.ones(5))
        guard.decide(optimizer, torch.tensor(1.0), 1)
    assert asked == 3


def test_a_loss_that_is_not_finite_makes_a_finite_gradient_nan() -> None:
    weight = torch.ones(2, requires_grad=True)
    losses = torch.stack([weight[0] * 2, weight[1] * 0 + math.inf])
    factor = StepGuard().watch(torch.arange(2), losses)
    (losses.sum() * factor).backward()
    assert weight.grad is not None
    assert weight.grad.isnan().all()


def test_half_precision_skips_an_overflow_without_counting_it_and_counts_a_bad_loss(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A scale of 2^30 overflows float16; each overflow halves it, until steps are taken."""
    module, states = poisoned({13}), States()
    module.bad_row = 53
    module.optimizer_options = OptimizerOptions(lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    trainer = quiet_trainer(
        callbacks=[states], precision=None, plugins=[GuardedHalfPrecision("cpu", scaler)]
    )
    with caplog.at_level(logging.WARNING, logger="minimind_dpo"):
        trainer.fit(module, loader(made_up_pairs(64), 4))
    moved = [states.moved(step) for step in range(2, 17)]  # from step 2 on
    assert not moved[0]
    assert moved[11:] == [True, False, True, True]  # step 14 has the bad loss
    assert scaler.get_scale() < 2.0**30
    assert (module.guard.total, module.guard.in_a_row) == (1, 0)
    assert "optimizer step 14: loss or gradient is not finite" in caplog.text
    assert "made_up.jsonl:54" in caplog.text
    grad_norm = trainer.logger.steps[16]["train/grad_norm"]  # type: ignore[union-attr]
    assert 0 < grad_norm < 1e3  # unscaled


def test_too_many_bad_steps_in_a_row_stop_the_run() -> None:
    with pytest.raises(NotFiniteError, match="3 optimizer steps in a row"):
        quiet_trainer().fit(poisoned({0, 1, 2, 3}), loader(made_up_pairs(20), 4))


def test_bad_steps_apart_from_each_other_do_not_stop_the_run() -> None:
    module = poisoned({0, 1, 3, 4})
    quiet_trainer().fit(module, loader(made_up_pairs(24), 4))
    assert (module.guard.total, module.guard.in_a_row) == (4, 0)


def test_a_policy_left_on_plain_attention_is_switched_to_the_layout_it_is_given() -> None:
    """Packed pairs would otherwise see each other, and nothing would say so."""
    pairs = made_up_pairs(8)
    policy, reference = tiny_model(layout="padded"), tiny_model(1, layout="padded")
    module, right = DPOModule(policy, reference), make_module(reference=tiny_model(1))
    for each in (module, right):
        quiet_trainer().validate(each, loader(pairs, 8), verbose=False)
    assert module.last_val_metrics == right.last_val_metrics


def test_the_state_before_the_bad_steps_is_saved_when_they_stop_the_run(tmp_path: Path) -> None:
    from minimind_dpo.training.resume.callback import ResumeCheckpoint

    module, saves = poisoned({2, 3, 4, 5}), ResumeCheckpoint(tmp_path, every_n_steps=0)
    trainer = quiet_trainer(enable_checkpointing=True, callbacks=[saves])
    with pytest.raises(NotFiniteError):
        trainer.fit(module, loader(made_up_pairs(24), 4))
    (saved,) = tmp_path.glob("step-*.ckpt")
    assert saved.name == "step-00000005.ckpt"  # two good steps and three refused ones
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_likelihood_term_is_finite_in_validation(tmp_path: Path) -> None:
    from minimind_dpo.data.datamodule import PreferenceDataModule
    from minimind_dpo.data.options import DataOptions
    from minimind_dpo.demo import HELD_OUT, MODEL, PREFERENCES, TOKENIZER
    from minimind_dpo.models.load import load_model

    policy = load_model(MODEL, TOKENIZER)
    options = DataOptions(
        train=PREFERENCES, val=HELD_OUT, cache_dir=str(tmp_path), batch_size=16, num_workers=0
    )
    data = PreferenceDataModule(policy.tokenizer, options, progress=False)  # type: ignore[arg-type]
    module = DPOModule(policy.model, None, LossOptions(type=("sft",)))
    quiet_trainer(limit_val_batches=2).validate(module, datamodule=data, verbose=False)
    assert 0 < module.last_val_metrics["loss"] < 5
