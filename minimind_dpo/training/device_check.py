"""Prove on a device, in about a minute, what cannot be proved without it.

Every row runs a small random model of one MiniMind generation in one precision: the layout against
plain forwards on the device, the loss of step 0 against ln 2, planned log-probs against those of
float32 and one call a sequence, and an optimizer step in which the host must not wait.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.scoring import score
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import load_model as load_model  # makes v_learn known
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.objective.logps import PairLogps, sequence_logps
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import pair_losses
from minimind_dpo.training.layout_check import check_layout
from minimind_dpo.training.optim import make_optimizer
from minimind_dpo.training.options import OptimizerOptions

DTYPES: Final = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
SIZE: Final = {
    "vocab_size": 6400,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 512,
}
PAIRS: Final = 8
"""Of a step."""
NOISE: Final = {"32-true": 1e-3, "bf16-mixed": 1.0, "16-mixed": 0.2}
"""Nats by which an answer's log-prob may differ from float32's; about 60 tokens an answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one generation did in one precision.

    Attributes:
        generation: `v3`.
        precision: As `trainer.precision`.
        layout: `ok`, or why the layout's numbers are not the model's own.
        loss: Mean DPO loss of step 0, where policy and reference are equal: ln 2.
        noise: Largest difference of an answer's log-prob from float32's, in nats.
        waits: `none`, or where the host waited for the device in a step.
        pairs_per_second: Of optimizer steps of `PAIRS` pairs.
    """

    generation: str
    precision: str
    layout: str
    loss: float
    noise: float
    waits: str
    pairs_per_second: float

    @property
    def sound(self) -> bool:
        """Whether every promise was met."""
        exact = abs(self.loss - math.log(2)) < 1e-3 and self.noise <= NOISE[self.precision]
        return exact and self.layout == "ok" and self.waits == "none"


def check_device(device: torch.device, generations: list[str] | None = None) -> Iterator[Row]:
    """One row for each generation and each precision that the device has.

    Args:
        device: Where to run.
        generations: Names in `GENERATIONS`; all of them by default.
    """
    for generation in generations or list(GENERATIONS):
        model = random_model(generation)
        model.to(device)  # type: ignore[arg-type]
        batch = some_pairs(PAIRS)
        exact = _score(model, batch.to(device), None).sums
        for precision in precisions(device):
            yield _row(model, generation, precision, batch, exact)


def precisions(device: torch.device) -> list[str]:
    """Those that a device computes by itself: bfloat16 wants capability 8.0, float16 a GPU."""
    if device.type != "cuda":
        return ["32-true", "bf16-mixed"]
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return [name for name in DTYPES if name != "bf16-mixed" or has_bfloat16]


def random_model(generation: str, **size: int) -> PreTrainedModel:
    """A small model of a generation with random weights that matter, on the CPU."""
    table = GENERATIONS[generation]
    torch.manual_seed(0)
    config = transformers_config(table, False, dict(table.defaults) | SIZE | size, 0.0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    return model


def some_pairs(count: int, length: int = 120) -> PreferenceBatch:
    """Pairs of random tokens, prompts and answers of up to half of `length`, one prompt a pair."""
    random = np.random.default_rng(0)
    pairs = []
    for index, sizes in enumerate(random.integers(length // 8, length // 2, (count, 3))):
        prompt, *answers = (random.integers(0, 6400, n).astype(np.int32) for n in sizes)
        pairs.append(TokenizedPair(prompt, answers[0], answers[1], index))
    return Collator("prefix_shared", max_length=length)(pairs)


def training_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: PreferenceBatch,
    reference: Tensor,
    dtype: torch.dtype | None,
) -> Tensor:
    """Copy, forward, loss, backward, clip, update: what a run does to a batch, without its loop.

    Args:
        model: The policy, on a device.
        optimizer: Over its weights.
        batch: On the CPU, pinned where the copy is not to be waited for.
        reference: float32 (N,) log-probs of the scored tokens, on the model's device.
        dtype: Of autocast; None for none.

    Returns:
        The mean loss, a scalar on the device.
    """
    moved = batch.to(model.device, non_blocking=True)
    with _autocast(model.device, dtype):
        policy = sequence_logps(model, moved)
        frozen = PairLogps(reference, moved.sequence_id, moved.lengths)
        loss = pair_losses(policy, frozen, LossOptions(), margins=moved.margins).losses.mean()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def _row(
    start: PreTrainedModel, generation: str, precision: str, batch: PreferenceBatch, exact: Tensor
) -> Row:
    model, dtype = copy.deepcopy(start), DTYPES[precision]
    device = model.device
    layout = "ok"
    try:
        with _autocast(device, dtype):
            check_layout(model, "prefix_shared", noise=True)
    except CheckpointError as error:
        layout = str(error)
    use_planned_attention(model, True)
    optimizer = make_optimizer(model, OptimizerOptions(lr=1e-6))
    if device.type == "cuda":
        batch = batch.pin_memory()
    moved = batch.to(device)
    logps = _score(model, moved, dtype)
    noise, tokens = float((logps.sums - exact).abs().max()), logps.token_logps
    loss = float(training_step(model, optimizer, batch, tokens, dtype))
    waits = _waits(lambda: training_step(model, optimizer, batch, tokens, dtype), device)
    seconds = _seconds(lambda: training_step(model, optimizer, batch, tokens, dtype), device)
    return Row(generation, precision, layout, loss, noise, waits, PAIRS / seconds)


@torch.no_grad()
def _score(model: PreTrainedModel, batch: PreferenceBatch, dtype: torch.dtype | None) -> PairLogps:
    with _autocast(model.device, dtype):
        return score(model, batch)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def _waits(step: Any, device: torch.device) -> str:
    if device.type != "cuda":
        step()
        return "none"
    torch.cuda.synchronize(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _seconds(step: Any, device: torch.device, count: int = 3) -> float:
    """The fastest of a few."""
    times = []
    for _ in range(count):
        _finish(device)
        start = time.perf_counter()
        step()
        _finish(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _finish(device: torch.device) -> None:
    with contextlib.suppress(AttributeError):
        getattr(torch, device.type).synchronize(device)
