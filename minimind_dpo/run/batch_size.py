"""`data.batch_size=auto`: how many pairs of an optimizer step a GPU takes at a time.

A step holds 8 x `trainer.accumulate_grad_batches` pairs a device on any machine, so that what is
learned does not depend on the card; only into how many micro-batches it is cut does. The largest
micro-batch is taken whose memory fits into what is free:

    bytes(T tokens) = fixed + T token          fits where bytes(T) <= 0.8 free

    fixed    a trained weight takes 16 (itself, its gradient, Adam's two moments), a frozen one 4,
             and each of them 2 more under mixed precision, for the copy that products read
    token    layers x layer + 24 x block: a layer keeps 44 of each hidden unit and 8 of each
             feed-forward unit in half precision, twice that in full; the LM head has six blocks of
             float32 logits alive. With gradient checkpointing all layers but one keep their float32
             input alone.

The constants bound what the generations of MiniMind save for the backward pass without
`torch.compile`, which saves about half. The fifth that is left is for the allocator's gaps, the
libraries' workspace, and longer batches of later epochs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from minimind_dpo import launch
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import PAIRS
from minimind_dpo.objective.lm_head import block_size
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.run.folder import Run
from minimind_dpo.run.plan import RunPlan
from minimind_dpo.training.agreement import decided
from minimind_dpo.training.option_values import parse_devices

SHARE: Final = 0.8
"""Of the free memory."""
_DECIDED: Final = "MINIMIND_DPO_BATCH_SIZE"
"""Variable by which the first rank tells those that it launches."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What a training step of a model needs, in bytes.

    Attributes:
        fixed: Whatever the batch.
        token: For each token of a micro-batch.
    """

    fixed: int
    token: int

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        *,
        mixed: bool,
        online: bool = False,
        checkpointing: bool = False,
    ) -> Memory:
        """By the formula above.

        Args:
            model: The policy, with its adapters.
            mixed: Products are in half precision.
            online: A second model of the same size is the reference.
            checkpointing: Activations are computed again in the backward pass.
        """
        total = sum(p.numel() for p in model.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        fixed = 4 * total + 12 * trained + 2 * mixed * total + 4 * online * total
        config = model.config
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        hidden = max(config.hidden_size, heads * (getattr(config, "head_dim", None) or 0))
        layer = (44 * hidden + 8 * _feed_forward(config)) * (1 if mixed else 2)
        kept = 4 * hidden * (layers + 3) + layer if checkpointing else layers * layer
        return cls(fixed, kept + 24 * block_size(config.vocab_size, "cuda"))

    def of_tokens(self, tokens: int) -> int:
        """Bytes of a step whose largest micro-batch has so many tokens."""
        return self.fixed + tokens * self.token


def _feed_forward(config: Any) -> int:
    """Units that a token passes in one layer; of experts, those it is sent to and a shared one."""
    width = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    width = getattr(config, "moe_intermediate_size", None) or width
    experts = getattr(config, "num_experts_per_tok", None) or getattr(config, "moe_k", None)
    return int(width * (experts + 1 if experts else 1))


def batch_size_for(
    memory: Memory,
    free: int,
    pairs: int,
    most_tokens: Callable[[int], int],
    preferred: int | None = None,
) -> int:
    """The largest part of a step that fits.

    Args:
        memory: What a step needs.
        free: Bytes of the device that are free.
        pairs: Of a step on one device.
        most_tokens: Tokens of the largest micro-batch, by pairs of a micro-batch.
        preferred: What is taken if it fits, if it divides `pairs`.

    Returns:
        A divisor of `pairs`; 1 where nothing fits.
    """
    sizes = [size for size in range(pairs, 0, -1) if pairs % size == 0]
    if preferred in sizes:
        sizes.insert(0, preferred)
    fitting = (n for n in sizes if memory.of_tokens(most_tokens(n)) <= SHARE * free)
    return next(fitting, 1)


def spread_step(
    config: Config,
    model: PreTrainedModel,
    data: PreferenceDataModule,
    run: Run,
    plan: RunPlan,
    aux_coef: float = 0.0,
) -> tuple[Config, RunPlan]:
    """Cut the step for this machine's GPU, where `data.batch_size=auto` leaves that open.

    Args:
        config: Settled.
        model: The policy, on the CPU.
        data: Prepared; its batches are cut anew.
        run: What is resumed goes on with the step cut as it was, where that fits.
        plan: As it is without a GPU.
        aux_coef: Factor of a balance loss, which is a micro-batch's and not a pair's.

    Returns:
        The configuration with numbers, and the plan, which says where they come from.
    """
    on_gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    if config.data.batch_size != "auto" or not on_gpu:
        return config, plan
    obstacle = _obstacle(config, aux_coef)
    if obstacle:
        return config, replace(plan, cut=f"data.batch_size=auto stays {PAIRS}: {obstacle}")
    told, timeout = os.environ.get(_DECIDED), config.guard.rank_timeout
    if told is not None and launch.launched_by_rank():
        size, why = int(told), ""
    else:
        size, why = decided(lambda: _decide(config, model, data, run, plan), timeout)
        os.environ[_DECIDED] = str(size)
    accumulate = plan.batch_size * plan.division.accumulate // size
    data.batch_size = size
    trainer = replace(config.trainer, accumulate_grad_batches=accumulate)
    config = replace(config, data=replace(config.data, batch_size=size), trainer=trainer)
    return config, replace(RunPlan.of(config, data), cut=why)


def pairs_at_a_time(config: Config) -> int:
    """Pairs of a micro-batch, as far as that is decided."""
    told = os.environ.get(_DECIDED) if config.data.batch_size == "auto" else None
    return config.data.pairs if told is None else int(told)


def _obstacle(config: Config, aux_coef: float) -> str:
    """Why another cut would train otherwise; empty where it would not."""
    sorting = [name for name in config.loss.type if LOSSES[name].sorts]
    if sorting:
        return f"loss.type={sorting[0]} sorts over a micro-batch"
    if aux_coef:
        return "the balance loss of the experts is a micro-batch's (loss.aux_coef)"
    for key in ("limit_train_batches", "limit_val_batches"):
        limit = getattr(config.trainer, key)
        # The integer 1 is one micro-batch, and 1.0 all of them; no validation has no batch.
        if limit is not None and limit != 0 and (isinstance(limit, int) or limit != 1.0):
            return f"trainer.{key} counts micro-batches"
    return "schedule.name=notebook counts micro-batches" * (config.schedule.name == "notebook")


def _decide(
    config: Config, model: PreTrainedModel, data: PreferenceDataModule, run: Run, plan: RunPlan
) -> tuple[int, str]:
    """Pairs of a micro-batch, and why."""
    reference = config.reference
    memory = Memory.of(
        model,
        mixed=str(config.trainer.precision).endswith("-mixed"),
        online=reference.mode == "online" and not (config.model.lora.r and reference.path is None),
        checkpointing=config.model.gradient_checkpointing,
    )
    division = plan.division
    pairs = plan.batch_size * division.accumulate

    @functools.cache
    def most_tokens(size: int) -> int:
        return data.most_tokens(size, replace(division, accumulate=pairs // size))

    free = _free_bytes(parse_devices(config.trainer.devices))
    before = run.header.shape if run.header is not None else {}
    size = batch_size_for(memory, free, pairs, most_tokens, before.get("batch_size"))
    tokens = most_tokens(size)
    need = memory.of_tokens(tokens)
    noun = "pair" if size == 1 else "pairs"
    text = (
        f"{size} {noun}, {tokens:,} tokens at most, about {need / 1e9:.1f} of {free / 1e9:.1f} GB "
        "free (data.batch_size=auto)"
    )
    if need > SHARE * free:
        advice = "model.gradient_checkpointing=true or a smaller data.max_length"
        text += f". It may not fit: use {advice}"
    return size, text


def _free_bytes(devices: int | list[int] | None) -> int:
    """What is free on this rank's device, at most the memory of the smallest device in use."""
    count = torch.cuda.device_count() if devices is None else devices
    listed = count if isinstance(count, list) else list(range(count))
    own = listed[launch.local_rank() % len(listed)]
    smallest = min(torch.cuda.get_device_properties(index).total_memory for index in listed)
    return min(torch.cuda.mem_get_info(own)[0], smallest)
