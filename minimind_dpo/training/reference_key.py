"""What the reference's log-probs depend on besides the pairs, as one key of the cache.

A number that is read back must be the number that would be computed. Weights, the settings of the
model and the layout always decide it. In float32 what else may differ (the device, a compiled
layer, another kernel) moves a log-prob by rounding alone, about 1e-6 nats; in half precision the
same differences move a pair by a tenth of a nat and more, so they are part of the key.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from minimind_dpo.models.lora import base_name

KERNELS: Final = 3
"""Counts changes of this project's kernels that move numbers in half precision."""

_NAMES_ALONE: Final = ("_name_or_path", "transformers_version")


def reference_key(
    model: PreTrainedModel, *, layout: str, precision: str, device: torch.device
) -> str:
    """sha256 over everything that can change the log-probs of given tokens under `model`.

    Args:
        model: The reference.
        layout: `data.layout`.
        precision: `trainer.precision`.
        device: Where the model runs.
    """
    facts: dict[str, Any] = {
        "weights": weights_fingerprint(model),
        "settings": {k: v for k, v in model.config.to_dict().items() if k not in _NAMES_ALONE},
        "layout": layout,
        "precision": precision,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    exact = model.dtype in (torch.float32, torch.float64)
    if precision not in ("32-true", "64-true") or not exact:
        facts |= {
            "device": device.type,
            "compiled": any(m._compiled_call_impl is not None for m in model.modules()),
            "torch": torch.__version__,
            "kernels": KERNELS,
        }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_fingerprint(model: PreTrainedModel) -> str:
    """sha256 over a model's own parameters and buffers: names, shapes, dtypes and bytes.

    Adapters are left out: they start as zero, so the model that is the reference has none.
    """
    digest = hashlib.sha256(type(model).__name__.encode())
    named = ((base_name(name), tensor) for name, tensor in model.state_dict().items())
    for name, tensor in sorted(
        ((name, tensor) for name, tensor in named if name is not None), key=lambda item: item[0]
    ):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()
