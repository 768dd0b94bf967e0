"""`DPOModule`: policy, frozen reference and objective as one LightningModule.

A micro-batch contributes the sum of its pairs' losses, scaled so that after Lightning's division
by the accumulation and DDP's mean over ranks each pair of the optimizer step weighs the same:

    loss = sum_p w_p l_p * accumulate * world_size / pairs of the step

Metrics are sums and counts over pairs, reduced over ranks once a logged point, which is the mean
over all pairs since the point before. A step that the guard refuses trains nothing and is left out.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.evaluation.scoring import score
from minimind_dpo.objective.logps import AuxLoss, PairLogps
from minimind_dpo.objective.metrics import MetricSums, metric_names, pair_metrics
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import LossOutput, pair_losses
from minimind_dpo.training.arguments import check_batch, check_models
from minimind_dpo.training.lightning_seams import allows_fused, ends_step, gradient_scale
from minimind_dpo.training.nan_guard import NotFiniteError, StepGuard
from minimind_dpo.training.optim import clip_gradients, make_optimizer, schedule_factor
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.points import (
    LogsSteps,
    exact,
    go_on_summing,
    means_of_all_ranks,
    sums_of_all_ranks,
    tell_trainer,
)
from minimind_dpo.training.reference import NoReference, OnlineReference, ReferenceScorer


class DPOModule(L.LightningModule):
    """Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290) and its relatives.

    Args:
        policy: The model that is trained. Dropout is whatever its configuration says.
        reference: The frozen reference: a model (run online), a `ReferenceScorer`, or None for
            losses that need none. Never part of this module's state.
        loss: The objective.
        optimizer: AdamW's settings.
        schedule: The learning-rate schedule.
        aux_loss: Balance loss of a mixture of experts from its router logits.
        aux_coef: Its factor; at 0 it is not computed.
        guard: What to do about steps that are not finite; the default refuses them.

    Raises:
        TypeError: Policy or reference is no model, as a name or path is none.
        ValueError: They are one object.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel | ReferenceScorer | None = None,
        loss: LossOptions | None = None,
        *,
        optimizer: OptimizerOptions | None = None,
        schedule: ScheduleOptions | None = None,
        aux_loss: AuxLoss | None = None,
        aux_coef: float = 0.0,
        guard: StepGuard | None = None,
    ) -> None:
        super().__init__()
        check_models(policy, reference)
        self.policy = policy
        if isinstance(reference, PreTrainedModel):
            reference = OnlineReference(reference)
        # A scorer is no nn.Module, so assigning it does not register the reference's weights.
        self.reference: ReferenceScorer = reference or NoReference()
        self.loss = loss or LossOptions()
        self.optimizer_options = optimizer or OptimizerOptions()
        self.schedule_options = schedule or ScheduleOptions()
        self.aux_loss = aux_loss if aux_coef else None
        self.aux_coef = aux_coef
        self.guard = guard or StepGuard()
        self.step_lr = 0.0
        self.last_train_metrics: dict[str, float] = {}
        self.last_train_step = 0
        self.last_val_metrics: dict[str, float] = {}
        self.last_val_step = -1
        self.weights_of_step: int | None = None
        self.restores = False
        # A rank that is given no pair still has to line its sums up with the others'.
        names = metric_names(self.loss, reference=not isinstance(self.reference, NoReference))
        train_names = [*names, *(["aux_loss"] if self.aux_loss else [])]
        self._step_sums = MetricSums(train_names)  # of the optimizer step in progress
        self._train_sums = MetricSums(train_names)  # of the steps since the last logged point
        self._val_sums = MetricSums(names)

    def forward(self, batch: PreferenceBatch) -> PairLogps:
        """Log-probs of the batch's scored tokens under the policy."""
        return score(self.policy, batch, statistics=True)

    def setup(self, stage: str) -> None:
        """Give the reference what it needs; a precomputed one runs over the data here."""
        self.reference.prepare(self.trainer, self.policy)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, scaled for its optimizer step."""
        check_batch(batch)
        if batch.num_pairs == 0:
            return self._connected_zero()
        policy = score(self.policy, batch, statistics=True, aux_loss=self.aux_loss)
        output = self._losses(policy, batch, self._step_sums)
        finite = self.guard.watch(batch.pair_index, output.losses)
        total = (output.losses * batch.weights.to(output.losses.dtype)).sum()
        if policy.aux_loss is not None:
            total = total + self.aux_coef * policy.aux_loss * batch.num_pairs
        passes = self.trainer.accumulate_grad_batches * self.trainer.world_size
        return total * (passes / batch.window.pairs) * finite

    def on_fit_start(self) -> None:
        """Train mode on purpose: models from a checkpoint come in eval mode."""
        self.policy.train()

    def on_train_start(self) -> None:
        """Callbacks that monitor a curve find its newest point, in a resumed run too."""
        self.restores = False
        for prefix, metrics in (("train", self.last_train_metrics), ("val", self.last_val_metrics)):
            named = {f"{prefix}/{name}": exact(value) for name, value in metrics.items()}
            self.trainer.callback_metrics.update(named)

    def configure_callbacks(self) -> list[Callback]:
        """Log a step before a checkpoint callback saves it: the module's own hook is too late."""
        return [LogsSteps()]

    def finish_step(self) -> None:
        """At the end of an optimizer step, log the mean over all pairs since the last point."""
        self._train_sums.add_sums(self._step_sums, where=self.guard.taken)
        self._step_sums.reset()
        step = self.trainer.global_step
        if self.logs_step(step) or self.device.type != "cuda":
            self.guard.read(self.trainer)
        if self.logs_step(step):
            self.last_train_metrics = means_of_all_ranks(self, self._train_sums) | {
                "grad_norm": self.guard.norm,
                "learning_rate": self.step_lr,
                "guard/bad_steps": float(self.guard.total),
            }
            self.last_train_step = step
            self._train_sums.reset()
            self.publish("train", self.last_train_metrics)
            tell_trainer(self, "train", self.last_train_metrics, logger=False)
        self.log("step", exact(step), logger=False, batch_size=1)

    def on_train_batch_end(self, outputs: Any, batch: PreferenceBatch, batch_idx: int) -> None:
        """Stop where no step could be taken for too long; callbacks have saved the state."""
        if ends_step(self.trainer):
            self.guard.stop_if_exhausted()

    def on_train_end(self) -> None:
        """Count the steps since the last logged one, where a callback ended the run early."""
        self.guard.read(self.trainer)

    def on_validation_epoch_start(self) -> None:
        """Start the sums of this validation anew."""
        self.guard.read(self.trainer)
        self._val_sums.reset()

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Add a batch's metrics to the sums of this validation."""
        check_batch(batch)
        if batch.num_pairs:
            policy = score(self.policy, batch, statistics=True)
            self._losses(policy, batch, self._val_sums)

    def on_validation_epoch_end(self) -> None:
        """Exact means over all pairs of the validation set, over all ranks."""
        self.last_val_metrics = means_of_all_ranks(self, self._val_sums)
        self.last_val_step = self.current_step
        tell_trainer(self, "val", self.last_val_metrics, logger=True)
        # Lightning's own way to name the step; it would count one less.
        self.log("step", exact(self.last_val_step), batch_size=1)

    def divergence(self) -> NotFiniteError | None:
        """Why this module, after training, is not fit for use; None where it is."""
        weights = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        return self.guard.divergence(weights, self.last_val_metrics.get("loss", 0.0))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is counted and reported besides weights."""
        self.guard.read(self.trainer)
        checkpoint["dpo_module"] = {
            "bad_steps": [self.guard.total, self.guard.in_a_row],
            "last_train_step": self.last_train_step,
            "last_train_metrics": self.last_train_metrics,
            "last_val_step": self.last_val_step,
            "last_val_metrics": self.last_val_metrics,
            "train_sums": sums_of_all_ranks(self, self._train_sums),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.restores = True  # until training starts
        kept = checkpoint["dpo_module"]
        self.guard.total, self.guard.in_a_row = kept["bad_steps"]
        self.last_train_step = kept["last_train_step"]
        self.last_train_metrics = dict(kept["last_train_metrics"])
        self.last_val_step = kept["last_val_step"]
        self.last_val_metrics = dict(kept["last_val_metrics"])
        go_on_summing(self, self._train_sums, kept["train_sums"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and a schedule that moves once per optimizer step."""
        trainer, options = self.trainer, self.optimizer_options
        optimizer = make_optimizer(self.policy, options, allow_fused=allows_fused(trainer))
        factor = schedule_factor(
            self.schedule_options,
            trainer.estimated_stepping_batches,
            accumulate=trainer.accumulate_grad_batches,
            micro_batches=self.micro_batches,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by torch itself (Lightning's own way refuses fused optimizers), then guard the step.

        Lightning calls this once per optimizer step, after unscaling. Nothing here waits for the
        device if the optimizer is fused.
        """
        by_value = gradient_clip_algorithm == "value"
        norm = clip_gradients(optimizer, gradient_clip_val or 0.0, by_value=by_value)
        self.step_lr = optimizer.param_groups[0]["lr"]
        trainer = self.trainer
        self.guard.decide(optimizer, norm, trainer.global_step + 1, gradient_scale(trainer))

    def logs_step(self, step: int) -> bool:
        """Whether a point is logged after an optimizer step, counted from 1.

        The first, every n-th and the last step: each pair of a run is in one point.
        """
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        last = self.trainer.estimated_stepping_batches
        return bool(every) and (step == 1 or step % every == 0 or step == last)

    def publish(self, prefix: str, metrics: dict[str, float]) -> None:
        """Hand metrics to every logger at the exact step.

        Lightning would do it after the state is saved, so that a resumed run would lack the point.
        """
        named = {f"{prefix}/{name}": value for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(named, step=self.trainer.global_step)

    @property
    def current_step(self) -> int:
        """Optimizer steps that the weights have seen; fewer than trained if taken back."""
        taken_back = self.weights_of_step
        return self.trainer.global_step if taken_back is None else taken_back

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the whole run on one rank, where its length is known."""
        epochs = self.trainer.max_epochs or 0
        batches = self.trainer.num_training_batches
        return int(epochs * batches) if epochs > 0 and batches != float("inf") else 0

    def _losses(self, policy: PairLogps, batch: PreferenceBatch, sums: MetricSums) -> LossOutput:
        reference = self.reference.score(batch)
        output = pair_losses(
            policy,
            reference,
            self.loss,
            margins=batch.margins,
            padded_positions=batch.padded_positions,
            mean_chosen_length=batch.window.chosen_tokens / batch.window.pairs,
        )
        metrics = pair_metrics(policy, reference, output, batch.weights)
        if policy.aux_loss is not None:
            metrics["aux_loss"] = policy.aux_loss.detach() * batch.num_pairs
        sums.add(metrics)
        return output

    def _connected_zero(self) -> Tensor:
        """Zero of every parameter, so that a rank without a pair takes part in DDP's reduction."""
        trained = (p for p in self.policy.parameters() if p.requires_grad)
        return sum((p.sum() * 0.0 for p in trained), torch.zeros(()))
