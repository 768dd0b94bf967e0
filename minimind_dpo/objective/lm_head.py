"""Log-probs of scored tokens from the states that predict them: the LM head by vocabulary blocks.

For a token with logits z = cap(scale (W h + b)), target t and upstream gradient g

    logp = z_t - logsumexp(z)    dz = g (onehot(t) - softmax(z))    dh = dz W    dW = dz^T h

Logits exist for one block of the vocabulary at a time, in the forward pass, which keeps their
log-sum, and in the backward pass, which makes them again: memory grows with tokens and with the
vocabulary but not with their product, and each block's rows of dW are written once. A batch whose
logits are few keeps them instead. Products run in the precision of the autocast context, and on
CUDA are written in float32, as they are summed; sums, log-sums and log-probs are float32 (float64
where the model is).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from minimind_dpo.kernels import cpu_matmul

LOG2_E = 1 / math.log(2)

BLOCK_SIZE = {"cpu": 1024}
"""Largest vocabulary block by kind of device; `BLOCK_SIZE_ELSEWHERE` on all others.

It does not go by the number of tokens, so that a log-sum adds up alike in every batch. What is then
left between a policy and an equal reference that was scored in other batches is how a library
rounds matrix products of another number of rows: 1e-6 nats with MKL on an Intel processor.
"""

BLOCK_SIZE_ELSEWHERE = 4096

KEPT_ELEMENTS = 1 << 25
"""Up to so many logits, 128 MiB in float32, stay from the forward to the backward pass."""

Options: TypeAlias = tuple[float, float, torch.dtype, bool, bool]
"""Scale, softcap, precision of products, whether statistics are wanted, whether logits stay."""


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits = cap(scale * (hidden @ weight.T + bias)).

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: Factor on the logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: Logits become softcap * tanh(logits / softcap) (Gemma's
            `final_logit_softcapping`); 0 for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """Read the head of a `transformers` causal language model.

        Raises:
            ValueError: The head is not a linear layer.
        """
        layer = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"the LM head of {type(model).__name__} is {type(layer).__name__}, but only a "
                "linear layer can be scored; leave it out of model.lora.target_modules"
            )
        config: Any = model.config
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None) or 0.0
        return cls(layer.weight, getattr(layer, "bias", None), float(scale), float(softcap))

    def logits(self, states: Tensor) -> Tensor:
        """(n, V) in float32 or more, of states (n, H); for a few at a time."""
        options = (self.scale, self.softcap, states.dtype, False, False)
        return _Logits(states, self.weight, self.bias, options).of(slice(None))


def scored_logps(
    states: Tensor, head: Head, target_id: Tensor, statistics: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of `target_id` from the states that predict them.

    Args:
        states: (N, H).
        head: The model's head.
        target_id: int64 (N,).
        statistics: Also compute the two statistics.

    Returns:
        Log-probs (N,); entropy (N,) and log of the sum of squared probabilities (N,), both zeros
        unless asked for. float32, or float64 where `states` is.
    """
    device = states.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    # A pass without gradients has nothing to keep logits for.
    keeps = torch.is_grad_enabled() and len(states) * len(head.weight) <= KEPT_ELEMENTS
    options = (head.scale, head.softcap, compute or states.dtype, statistics, keeps)
    return _ScoredLogps.apply(states, head.weight, head.bias, target_id, options)


class _ScoredLogps(torch.autograd.Function):
    """The head as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_id: Tensor,
        options: Options,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = _Logits(states, weight, bias, options)
        *_, statistics, keeps = options
        sums = _Sums(target_id, logits.exact, statistics)
        z_blocks = []
        with torch.autocast(states.device.type, enabled=False):
            for block in logits.blocks:
                z = logits.of(block)  # (N, V_block)
                sums.add(z, block)
                if keeps:
                    z_blocks.append(z)
        lse = sums.lse
        ctx.save_for_backward(states, weight, bias, target_id, lse, *z_blocks)
        ctx.options = options
        entropy, log_sum_sq = sums.statistics()
        ctx.mark_non_differentiable(entropy, log_sum_sq)
        return sums.target - lse, entropy, log_sum_sq

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, target_id, lse, *z_blocks = ctx.saved_tensors
        logits = _Logits(states, weight, bias, ctx.options)
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_states = torch.zeros_like(states, dtype=logits.exact) if needs_states else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if bias is not None and needs_bias else None
        upstream, less_lse = grads[0][:, None], -LOG2_E * lse[:, None]
        with torch.autocast(states.device.type, enabled=False):
            for i, block in enumerate(logits.blocks):
                z = z_blocks[i] if z_blocks else logits.of(block)  # (N, V_block)
                dz = torch.add(less_lse, z, alpha=LOG2_E).exp2_().mul_(-upstream)
                in_block, column = _columns(block, target_id)
                dz.scatter_add_(1, column, upstream * in_block)
                dz = logits.before_cap(dz, z)
                if grad_states is not None:
                    _add_product(grad_states, dz, logits.weight[block].t())
                if grad_weight is not None:
                    grad_weight[block] = _outer(dz, logits.states, weight.dtype)
                if grad_bias is not None:
                    grad_bias[block] = dz.sum(0, dtype=logits.exact).to(grad_bias.dtype)
        grad_states = None if grad_states is None else grad_states.to(states.dtype)
        return grad_states, grad_weight, grad_bias, None, None


class _Logits:
    """z = cap(scale (W h + b)) by vocabulary blocks."""

    def __init__(
        self,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        options: Options,
    ) -> None:
        self.scale, self.softcap, compute, *_ = options
        self.exact = torch.promote_types(torch.float32, states.dtype)
        self.states, self.weight = states.to(compute), weight.to(compute)
        self.bias = None if bias is None else bias.to(self.exact)
        self.blocks = _blocks(len(weight), states.device.type)

    def of(self, block: slice) -> Tensor:
        """(N, V_block) in float32 or more."""
        z = _product(self.states, self.weight[block], self.exact)
        if self.bias is not None:
            z += self.bias[block]
        if self.scale != 1.0:
            z *= self.scale
        return torch.tanh_(z.div_(self.softcap)).mul_(self.softcap) if self.softcap else z

    def before_cap(self, dz: Tensor, z: Tensor) -> Tensor:
        """The gradient of W h + b from that of z, in the precision of products."""
        if self.softcap:
            dz *= 1 - (z / self.softcap).square_()
        if self.scale != 1.0:
            dz *= self.scale
        return dz.to(self.states.dtype)


def _product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x weight^T in `dtype`, rounded to no other on the way where the device can."""
    if _widens(x, dtype):
        return torch.mm(x, weight.t(), out_dtype=dtype)
    return cpu_matmul.product(x, weight).to(dtype)


def _add_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    if _widens(x, total.dtype):
        total += torch.mm(x, weight.t(), out_dtype=total.dtype)
    else:
        cpu_matmul.add_product(total, x, weight)


def _outer(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    if _widens(x, dtype):
        return torch.mm(dy.t(), x, out_dtype=dtype)
    return cpu_matmul.outer(dy, x).to(dtype)


def _widens(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product of half precision is written as float32: by NVIDIA's libraries."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    return half and dtype == torch.float32 and x.is_cuda and torch.version.hip is None


class _Sums:
    """What is summed over the vocabulary, block after block; all (N,).

    They are of exp(z - top), top being the largest logit so far.
    """

    def __init__(self, target_id: Tensor, exact: torch.dtype, statistics: bool) -> None:
        zeros = target_id.new_zeros(len(target_id), dtype=exact)
        self.target_id, self.wants_statistics = target_id, statistics
        self.top = zeros + torch.finfo(exact).min
        self.target = self.total = self.weighted = self.squared = zeros

    def add(self, z: Tensor, block: slice) -> None:
        """Take in the logits of a block, (N, V_block)."""
        in_block, column = _columns(block, self.target_id)
        self.target = self.target + torch.where(in_block, z.gather(1, column), 0.0).squeeze(1)
        top = torch.maximum(self.top, z.amax(-1))
        shrink = (self.top - top).exp()
        e = (z - top[:, None]).mul_(LOG2_E).exp2_()
        self.top, self.total = top, self.total * shrink + e.sum(-1)
        if self.wants_statistics:
            weighted = (e * z).nan_to_num_(0.0).sum(-1)
            self.weighted = self.weighted * shrink + weighted
            self.squared = self.squared * shrink.square() + e.square().sum(-1)

    @property
    def lse(self) -> Tensor:
        """log sum exp(z)."""
        return self.top + self.total.log()

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Entropy -sum p log p and log sum p^2; zeros where they were not wanted."""
        if not self.wants_statistics:
            return torch.zeros_like(self.top), torch.zeros_like(self.top)
        entropy = self.lse - self.weighted / self.total
        return entropy, self.squared.log() - 2 * self.total.log()


def block_size(vocabulary: int, device: str) -> int:
    """Words of a block of logits on a kind of device."""
    count = math.ceil(vocabulary / BLOCK_SIZE.get(device, BLOCK_SIZE_ELSEWHERE))
    return 64 * math.ceil(vocabulary / count / 64)


def _blocks(vocabulary: int, device: str) -> list[slice]:
    """The vocabulary in blocks of one size, a multiple of 64 entries, but for the last."""
    size = block_size(vocabulary, device)
    return [slice(start, min(start + size, vocabulary)) for start in range(0, vocabulary, size)]


def _columns(block: slice, target_id: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a target is in the block, and its column there (any, if not); (N, 1) each."""
    column = target_id[:, None] - block.start
    in_block = (column >= 0) & (column < block.stop - block.start)
    return in_block, column.clamp(0, block.stop - block.start - 1)
