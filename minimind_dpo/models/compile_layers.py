"""`torch.compile` where it pays and cannot run away: decoder layers, sizes left open.

The number of tokens changes with every batch, so each decoder layer is compiled by itself with
dynamic sizes: all layers share a handful of graphs that are made at the first batch, whatever
comes later. CUDA's variable-length kernel is inside the graph; attention of a CPU, which is a list
of sequences of changing length, stays outside.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from minimind_dpo.models.errors import CheckpointError


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that transformers marks as decoder layers."""
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def compile_layers(model: PreTrainedModel, cache: Path | None = None) -> int:
    """Compile a model's decoder layers in place; the first batch waits for the compiler.

    Args:
        model: Its attention is set already.
        cache: Where compiled code is kept for later runs, unless the environment names a place.

    Returns:
        How many layers.

    Raises:
        CheckpointError: The model has no layers that transformers marks as such.
    """
    layers = decoder_layers(model)
    if not layers:
        raise CheckpointError(
            f"model.compile=true: {type(model).__name__} has no decoder layers that could be "
            "compiled one by one. Set model.compile=false for this model"
        )
    if cache is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
    for layer in layers:
        layer.compile(dynamic=True)
    return len(layers)
