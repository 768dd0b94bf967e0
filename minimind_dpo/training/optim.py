"""AdamW with decay where it belongs, and the learning-rate schedules.

A schedule is a pure function from optimizer step to a factor on the base learning rate:

    warmup      (t + 1) / W                                          for t < W
    cosine      m + (1 - m) (1 + cos(pi u)) / 2,   u = (t - W) / (T - W)
    linear      m + (1 - m) (1 - u)
    constant    1
    notebook    1/10 + (1 + cos(pi k / K)) / 2 at micro-batch k of K: starts at 1.1, has no warmup

with W warmup steps, T steps in all and m the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions

WARMUP_RATIO = 0.1
"""Share of the steps that warm up where nothing is given; what DPO recipes use."""


def make_optimizer(
    model: nn.Module, options: OptimizerOptions, *, allow_fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; vectors (norms, biases) are not decayed.

    Args:
        model: The policy.
        options: Its settings.
        allow_fused: Whether gradients are unscaled before the optimizer's step; a fused one would
            unscale them itself, after they were clipped.

    Raises:
        ValueError: Nothing is trainable, or `fused` is asked for and not allowed.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("the policy has no trainable parameter")
    vector_decay = options.weight_decay if options.decay_all else 0.0
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": vector_decay},
    ]
    fused = options.fused
    if fused is True and not allow_fused:
        raise ValueError(
            "optim.fused=true does not go with this gradient scaler, which leaves unscaling to the "
            "optimizer, after clipping. Leave it at auto"
        )
    if fused == "auto":
        fused = allow_fused and trainable[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.betas[0], options.betas[1]),
        eps=options.eps,
        fused=fused,
    )


def misshapen_moment(optimizer: torch.optim.Optimizer) -> str:
    """Which entry of a restored optimizer does not belong to its weight, if one does not.

    A fused kernel reads as many numbers of it as the weight has, past the end of a smaller one.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in enumerate(weights):
        for name, value in optimizer.state.get(weight, {}).items():
            shape = value.shape if isinstance(value, Tensor) else None
            if shape != (() if name == "step" else weight.shape):
                return f"{name} of weight {number}"
    return ""


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float, *, by_value: bool) -> Tensor:
    """Clip an optimizer's gradients in place, without waiting for the device.

    Args:
        optimizer: Whose gradients are unscaled.
        limit: Of their norm, or of each value; 0 for none.
        by_value: Which of the two.

    Returns:
        Norm of all gradients before, scalar on the device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit and by_value:
        torch.nn.utils.clip_grad_value_(parameters, limit)
    elif limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def schedule_factor(
    options: ScheduleOptions, total_steps: float, *, accumulate: int = 1, micro_batches: int = 0
) -> Callable[[int], float]:
    """The factor on the learning rate at each optimizer step, counted from 0.

    Args:
        options: The schedule.
        total_steps: Optimizer steps of the whole run; infinity where they are not known.
        accumulate: Micro-batches a step; only the notebook's schedule counts them.
        micro_batches: Micro-batches of the whole run, for the notebook's schedule.

    Raises:
        ValueError: The schedule counts to an end and there is none.
    """
    if math.isinf(total_steps):
        if options.name != "constant":
            raise ValueError(
                f"schedule.name={options.name} needs an end: set trainer.max_epochs "
                "or trainer.max_steps, or use schedule.name=constant"
            )
        total_steps = 0
    total_steps = int(total_steps)
    if options.name == "notebook":
        # An optimizer step happens at the rate that its window's last micro-batch was given.
        total = micro_batches or total_steps * accumulate
        return lambda step: notebook_factor((step + 1) * accumulate - 1, total)
    warmup = warmup_steps(options, total_steps)
    floor, span = options.min_lr_ratio, max(1, total_steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / span)
        if options.name == "constant":
            return 1.0
        if options.name == "linear":
            return floor + (1 - floor) * (1 - progress)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def warmup_steps(options: ScheduleOptions, total_steps: int) -> int:
    """Optimizer steps of linear warmup in a run of `total_steps`."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    share = WARMUP_RATIO if options.warmup_ratio is None else options.warmup_ratio
    return round(share * total_steps)


def notebook_factor(micro_batch: int, total: int) -> float:
    """The original notebook's factor at one micro-batch: 1.1 at the first, 0.1 at the end."""
    return 0.1 + 0.5 * (1 + math.cos(math.pi * micro_batch / max(1, total)))
