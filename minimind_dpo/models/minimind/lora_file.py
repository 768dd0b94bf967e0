"""Low-rank adapters as MiniMind's own scripts write them: `lora_*.pth`.

A linear layer's weight W gets W + B A, with B (rows, rank) under `LAYER.lora.B.weight` and A
(rank, columns) under `LAYER.lora.A.weight`; there is no further scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.minimind.native_file import check_finite, read_tensors

_A: Final = ".lora.A.weight"
_B: Final = ".lora.B.weight"


def is_lora(keys: Iterable[str]) -> bool:
    """Whether all keys of a file are those of adapters."""
    return all(key.endswith((_A, _B)) for key in keys)


def add_lora(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """A native state dict with the adapters of a file added, changed tensors in float32 or wider.

    Raises:
        CheckpointError: The file holds something else, or adapters of other layers or sizes.
    """
    where = f"model.adapters={path}"
    adapters = {key.removeprefix("module."): value for key, value in read_tensors(path).items()}
    if not is_lora(adapters):
        other = next(key for key in adapters if not key.endswith((_A, _B)))
        raise CheckpointError(
            f"{where} is not the adapters that MiniMind's train_lora.py writes: its keys are "
            f"LAYER{_A} and LAYER{_B}, and this file has {other[:100]!r}"
        )
    check_finite(adapters, where)
    result = dict(state)
    for layer in sorted({key.removesuffix(_A).removesuffix(_B) for key in adapters}):
        weight = state.get(f"{layer}.weight")
        a, b = adapters.get(layer + _A), adapters.get(layer + _B)
        if weight is None or a is None or b is None:
            raise CheckpointError(
                f"{where}: {layer[:100]!r} is not a layer of the model, or has only one of its two "
                "adapters. The file belongs to another model"
            )
        wide = torch.promote_types(weight.dtype, torch.float32)
        if (
            a.ndim != 2
            or b.ndim != 2
            or (len(b), a.shape[1]) != weight.shape
            or len(a) != b.shape[1]
        ):
            raise CheckpointError(
                f"{where}: {layer} has adapters {tuple(b.shape)} and {tuple(a.shape)} for weights "
                f"{tuple(weight.shape)}. The file belongs to a model of another size"
            )
        result[f"{layer}.weight"] = weight.to(wide) + b.to(wide) @ a.to(wide)
    return result
