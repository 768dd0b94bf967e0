"""Matrix products of a CPU in float32, by the faster of the two libraries that torch carries.

torch multiplies float32 matrices with MKL, which keeps processors that are not Intel's to older
instructions; oneDNN, with which torch already multiplies half precision, does not. One core of an
AMD EPYC of 2024 reaches 95 GFLOP/s with MKL and 200 with oneDNN. The same numbers are summed, in
another order: results differ by float32's rounding.

The choice belongs to the process, as torch's own settings of precision do: `choose_library` once,
then `product` (no gradient), `linear` (with) and `use_chosen_library` (a model's layers) wherever
the time goes. Everything else - other devices, other types, small sizes - is torch's `F.linear`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind_dpo.kernels.options import LIBRARIES

SMALLEST = 1 << 20
"""Multiplications below which torch's own product is not slower."""

SMALLEST_LAYER = 1 << 24
"""The same for a layer, whose operator costs 0.1 ms more to call than torch's own."""

_chosen = "torch"


def choose_library(library: str = "auto") -> str:
    """Choose what multiplies float32 matrices on this process's CPU.

    The choice depends on the machine and never on a timing: a resumed run chooses the same.

    Args:
        library: `onednn`, `torch` (its default), or `auto`: oneDNN where the processor is AMD's and
            torch would take MKL.

    Returns:
        `onednn` or `torch`.

    Raises:
        ValueError: No such choice, or `onednn` where this torch has none.
    """
    global _chosen
    if library not in LIBRARIES:
        raise ValueError(f"no library of matrix products {library!r}; there are {LIBRARIES}")
    if library == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError("this build of torch has no oneDNN; take auto or torch")
    if library == "auto":
        library = "onednn" if _mkl_is_slow() else "torch"
    _chosen = library
    return library


def chosen_library() -> str:
    """What `choose_library` last chose."""
    return _chosen


def _mkl_is_slow() -> bool:
    libraries = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return libraries and "AuthenticAMD" in _processor()


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    return described.read_text(encoding="utf-8") if described.exists() else platform.processor()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias, without a gradient.

    Args:
        x: (..., in), of any strides.
        weight: (out, in), of any strides.
        bias: (out,).

    Returns:
        (..., out).
    """
    if not _by_onednn(x, weight, SMALLEST):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias)


def add_product(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """total += x weight^T in place, in the precision of total (x's rows, out); no gradient."""
    if total.dtype != x.dtype or _by_onednn(x, weight, SMALLEST):
        total += product(x, weight).to(total.dtype)
    else:
        total.addmm_(x, weight.t())


def outer(dy: Tensor, x: Tensor) -> Tensor:
    """dy^T x, (dy's columns, x's columns), summed over their rows; no gradient."""
    if not _by_onednn(x.t(), dy.t(), SMALLEST):
        return F.linear(dy.t(), x.t())
    return _outer(_onednn, dy, x)


def _outer(multiply: Callable[..., Tensor], dy: Tensor, x: Tensor) -> Tensor:
    """oneDNN copies a left side that is transposed: it gets the smaller one."""
    if dy.shape[1] <= x.shape[1]:
        return multiply(dy.t(), x.t(), None)
    return multiply(x.t(), dy.t(), None).t()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with its products by the chosen library, forward and backward."""
    if not _by_onednn(x, weight, SMALLEST_LAYER):
        return F.linear(x, weight, bias)
    out = _linear(x, weight, bias)
    assert isinstance(out, Tensor)
    return out


def _by_onednn(x: Tensor, weight: Tensor, smallest: int) -> bool:
    return (
        _chosen == "onednn"
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.device.type == "cpu"
        # A compiled layer would be compiled once more for its small batches.
        and (torch.compiler.is_compiling() or x.numel() * weight.shape[0] >= smallest)
        and not torch.is_autocast_enabled("cpu")
    )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # NOTE: oneDNN takes other strides, but a thousand times slower.
        weight = weight.contiguous()
    out = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    assert isinstance(out, Tensor)
    return out


# An operator of torch's, so that compiled layers hold it as one node and fuse what is around it.
_linear = torch.library.custom_op(
    "minimind_dpo::linear",
    _onednn,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
)


@_linear.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dx = dy W, dW = dy^T x, db = sum of dy."""
    x, weight = ctx.saved_tensors
    rows, columns = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    dx = _linear(dy, weight.t(), None) if ctx.needs_input_grad[0] else None
    dweight = _outer(_linear, rows, columns) if ctx.needs_input_grad[1] else None
    dbias = rows.sum(0) if ctx.needs_input_grad[2] else None
    return dx, dweight, dbias


_linear.register_autograd(_gradients, setup_context=_keep)


class ChosenLinear(nn.Linear):
    """`nn.Linear`, its products by the library that was chosen for this process."""

    def forward(self, input: Tensor) -> Tensor:
        """As `nn.Linear`."""
        return linear(input, self.weight, self.bias)


def use_chosen_library(model: nn.Module) -> int:
    """Let a model's plain linear layers multiply with the chosen library.

    Layers keep their parameters, names and hooks; only the class that runs them changes, so that
    saving, adapters and gradient checkpointing see what they always saw. Subclasses of `nn.Linear`
    are left alone: they do something of their own.

    Returns:
        How many layers were changed; 0 where torch's own library is the chosen one.
    """
    if chosen_library() == "torch":
        return 0
    plain = [module for module in model.modules() if type(module) is nn.Linear]
    for module in plain:
        module.__class__ = ChosenLinear
    return len(plain)
