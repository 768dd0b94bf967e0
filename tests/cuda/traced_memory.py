"""What forward passes keep for the backward pass on an absent CUDA device: JSON on the last line.

For each generation and way of running, [bytes a token that are kept, bytes by the formula].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from absent_device import absent_cuda  # isort: skip

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.load import load_model  # noqa: F401  (makes v_learn known)
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.objective.logps import sequence_logps
from minimind_dpo.run.batch_size import Memory

SIZE = {
    "vocab_size": 6400,
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1408,
}
WAYS = {"half": (True, False), "full": (False, False), "checkpointing": (True, True)}


def kept(model: PreTrainedModel, count: int, mixed: bool) -> tuple[int, int]:
    """Bytes that a forward pass over some pairs keeps, weights apart, and their tokens."""
    random = np.random.default_rng(0)
    sizes = (200, 250, 250)
    pairs = [
        TokenizedPair(*(random.integers(0, 6400, n).astype(np.int32) for n in sizes), index)
        for index in range(count)
    ]
    batch = Collator("prefix_shared", max_length=1024)(pairs).to(torch.device("cuda"))
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.device.type == "cuda" and storage._cdata not in weights:
            storages[storage._cdata] = storage.nbytes(), tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cuda", torch.float16, enabled=mixed):
        logps = sequence_logps(model, batch)
    assert len(logps.sums) == 2 * count
    return sum(size for size, _ in storages.values()), batch.input_ids.numel()


def traced(name: str, mixed: bool, checkpointing: bool) -> tuple[float, int]:
    """Of two batches the difference: what does not grow with tokens is in neither."""
    generation = GENERATIONS[name]
    with absent_cuda():
        with torch.device("cuda"):
            fields = dict(generation.defaults) | SIZE
            config = transformers_config(generation, False, fields, 0.0)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        use_planned_attention(model, True)
        model.train()
        if checkpointing:
            model.activation_checkpointing_enable()
        # Both more than the head keeps whole.
        (few, fewer), (many, more) = (kept(model, count, mixed) for count in (20, 40))
        formula = Memory.of(model, mixed=mixed, checkpointing=checkpointing)
    return (many - few) / (more - fewer), formula.token


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({f"{n} {way}": traced(n, *WAYS[way]) for n in ("v1", "v3") for way in WAYS}))
