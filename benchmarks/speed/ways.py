"""The ways to train, each from a request to timed steps; all on the same pairs, in the same order.

notebook     the original notebook's: both models on the rectangle of max_length, all logits
dynamic      rectangles as wide as their longest row, logits of scored tokens, reference online
packed       no padding, reference online
shared       every prompt once for both answers, reference online
cold         the same with the reference's log-probs computed ahead; that pass is timed too
warm         the same without the pass, as in later epochs and later runs
split-cold   as cold and warm, with `micro_batch` pairs a forward pass, gradients added up to the
split-warm   same step: what `data.batch_size=1 trainer.accumulate_grad_batches=8` does
warm-trainer warm, through Lightning's loop as a user runs it
trl          TRL's DPOTrainer, reference online
trl-liger    the same with Liger's kernels, which TRL has with an online reference alone
trl-cold     TRL's with its log-probs computed ahead, the pass timed too
trl-warm     the same without the pass

Behind a way, `+compile` compiles the layers, and `+float32`, `+bfloat16` or `+float16`, which has a
gradient scaler, gives it a precision of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.store.reference_logps import ReferenceCache
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.evaluation.scoring import begin_scoring, one_behind, token_batches
from minimind_dpo.kernels.cpu_matmul import use_chosen_library
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.compile_layers import compile_layers
from minimind_dpo.models.load import load_model
from minimind_dpo.objective.logps import sequence_logps
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import pair_losses
from minimind_dpo.training.lightning_seams import scaled_step
from minimind_dpo.training.nan_guard import StepGuard
from minimind_dpo.training.optim import clip_gradients, make_optimizer
from minimind_dpo.training.options import OptimizerOptions
from minimind_dpo.training.reference import (
    OnlineReference,
    PrecomputedReference,
    ReferenceScorer,
)
from minimind_dpo.training.reference_key import weights_fingerprint
from speed.clock import Clock
from speed.request import Request
from speed.workload import open_store

CLIP = 1.0
"""Bound on the gradient's norm: MiniMind's, TRL's and this project's default."""


class FirstStep(NamedTuple):
    """What every way must agree on, at a step where policy and reference are the same.

    Attributes:
        loss: ln 2 where policy and reference are computed alike.
        grad_norm: Before clipping.
    """

    loss: float
    grad_norm: float


class Run(NamedTuple):
    """A way that has been run.

    Attributes:
        first: Its first step.
        policy: The trained model.
        once_more: Trains one more step, for the profiler; None where the loop is not ours.
    """

    first: FirstStep
    policy: PreTrainedModel
    once_more: Callable[[], object] | None = None


class Step(NamedTuple):
    """Tensors, so that a GPU need not wait for them."""

    loss: Tensor
    grad_norm: Tensor


def load(request: Request) -> PreTrainedModel:
    """The model in float32 on the device."""
    model = load_model(request.model, False).model
    torch.nn.Module.to(model, request.device)
    return model


def planned(request: Request, layout: str) -> PreTrainedModel:
    """The model as this project trains it."""
    model = load(request)
    use_chosen_library(model)
    use_planned_attention(model, layout != "padded")
    if request.compiled:
        compile_layers(model)
    return model


def autocast(request: Request) -> AbstractContextManager[object]:
    """The precision that forward passes run in."""
    dtype = torch.float16 if request.precision == "float16" else torch.bfloat16
    return torch.autocast(request.device, dtype, enabled=request.precision != "float32")


def scaler_of(request: Request) -> torch.amp.GradScaler:
    """The gradient scaler of float16; one that does nothing elsewhere."""
    return torch.amp.GradScaler(request.device, enabled=request.precision == "float16")


def plain_loop(
    request: Request,
    clock: Clock,
    store: TokenStore,
    policy: PreTrainedModel,
    step: Callable[[Sequence[TokenizedPair]], Step],
) -> Run:
    """Steps that are not timed, then the timed ones; reading and laying out pairs included."""
    policy.train()
    first = step([store[row] for row in request.warmup])
    found = FirstStep(float(first.loss), float(first.grad_norm))
    for rows in request.batches[: request.untimed]:
        step([store[row] for row in rows])
    with clock.timing("steps"):
        for rows in request.batches[request.untimed :]:
            step([store[row] for row in rows])
    return Run(found, policy, lambda: step([store[row] for row in request.batches[0]]))


class Ours:
    """This project's step, as `DPOModule` computes it between logged points.

    Args:
        request: What to run.
        layout: A layout of `Collator`.
        reference: The frozen model, online or ahead.
        micro_batch: Pairs of a forward pass; gradients of a step are added up.
    """

    def __init__(
        self, request: Request, layout: str, reference: ReferenceScorer, micro_batch: int
    ) -> None:
        self.request = request
        self.micro_batch = micro_batch
        self.collate = Collator(layout, max_length=request.max_length)
        self.policy = planned(request, layout)
        self.reference = reference
        self.loss = LossOptions(beta=request.beta)
        self.optimizer = make_optimizer(self.policy, OptimizerOptions(lr=request.lr))
        self.scaler = scaler_of(request)
        self.norm = torch.zeros(())

    def __call__(self, pairs: Sequence[TokenizedPair]) -> Step:
        loss = torch.zeros((), device=self.request.device)
        for start in range(0, len(pairs), self.micro_batch):
            part = self._losses(pairs[start : start + self.micro_batch]).sum() / len(pairs)
            self.scaler.scale(part).backward()
            loss += part.detach()
        scaled_step(self.scaler, self.optimizer, self._judge)
        self.optimizer.zero_grad(set_to_none=True)
        return Step(loss, self.norm)

    def _judge(self) -> None:
        self.norm = clip_gradients(self.optimizer, CLIP, by_value=False)
        StepGuard().decide(self.optimizer, self.norm, 1)

    def _losses(self, pairs: Sequence[TokenizedPair]) -> Tensor:
        batch = self._move(self.collate(pairs))
        with autocast(self.request):
            policy = sequence_logps(self.policy, batch)
            reference = self.reference.score(batch)
            return pair_losses(policy, reference, self.loss, margins=batch.margins).losses

    def _move(self, batch: PreferenceBatch) -> PreferenceBatch:
        if self.request.device == "cpu":
            return batch
        return batch.pin_memory().to(self.request.device, non_blocking=True)


def online(request: Request, clock: Clock, layout: str) -> Run:
    """Reference beside the policy."""
    reference = OnlineReference(planned(request, layout))
    step = Ours(request, layout, reference, request.batch_size)
    return plain_loop(request, clock, open_store(request.store), step.policy, step)


def ahead(request: Request, clock: Clock, timed: bool, split: bool = False) -> Run:
    """Reference log-probs computed ahead and read from the cache; the pass is `timed` or not.

    Cold, every row is computed, whatever is known of it already; warm, only what is missing.
    Hashing the weights for the cache's key is a cost of a run, not of a pair, and not timed.
    """
    store = open_store(request.store)
    micro_batch = request.micro_batch if split else request.batch_size
    step = Ours(request, "prefix_shared", PrecomputedReference(progress=False), micro_batch)
    key = weights_fingerprint(step.policy)
    key += "" if request.precision == "float32" else f"-{request.precision}"
    key += f"-cold-{request.round}" if timed else ""
    cache = ReferenceCache(store, key)
    if timed:
        before = len(request.rows) - len(request.timed)
        _score(request, step, store, cache, [*request.warmup, *request.rows[:before]])
        with clock.timing("pass"):
            _score(request, step, store, cache, request.timed)
            cache.flush()
    else:
        rows = dict.fromkeys([*request.warmup, *request.rows])
        _score(request, step, store, cache, cache.missing(list(rows)).tolist())
    cache.flush()
    return plain_loop(request, clock, store.with_reference(cache), step.policy, step)


def _score(
    request: Request, step: Ours, store: TokenStore, cache: ReferenceCache, rows: list[int]
) -> None:
    positions = torch.tensor(rows, dtype=torch.int64).numpy()
    step.policy.eval()
    tokens = step.collate.tokens(store.lengths[positions])

    def begin(part: np.ndarray) -> Callable[[], list[np.ndarray]]:
        return begin_scoring(
            step.policy,
            [store[int(row)] for row in part],
            step.collate,
            device=torch.device(request.device),
            precision_context=lambda: autocast(request),
        )

    for part, logps in one_behind(token_batches(positions, tokens, request.batch_tokens), begin):
        cache.write(part, logps)
