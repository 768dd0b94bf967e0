"""Trace training steps on an absent CUDA device: `python traced_steps.py REQUEST`, JSON in and out.

REQUEST is a list of {generation, precision, capability, layout, moe}; the answer lists, for each,
what the second of two steps did: kernels, waits, uploads, attention by kernel, refusals, and
products of half precision that are written in float32.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from absent_device import Trace, absent_cuda  # isort: skip

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.experts import use_autocast_experts
from minimind_dpo.models.load import load_model  # noqa: F401  (makes v_learn known)
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.training.device_check import training_step
from minimind_dpo.training.optim import make_optimizer
from minimind_dpo.training.options import OptimizerOptions

SMALL = {
    "vocab_size": 6400,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
}
EXPERTS = {
    "moe_intermediate_size": 64,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}


def four_pairs(layout: str) -> PreferenceBatch:
    """A batch with its reference's log-probs, on the CPU."""
    random = np.random.default_rng(0)
    pairs = [
        TokenizedPair(
            *(random.integers(0, 6400, n).astype(np.int32) for n in lengths),
            index,
            reference_logps=np.zeros(lengths[1] + lengths[2], dtype=np.float32),
        )
        for index, lengths in enumerate(random.integers(5, 90, (4, 3)))
    ]
    return Collator(layout, max_length=256)(pairs)


def traced(asked: dict[str, Any]) -> dict[str, Any]:
    """What one step does, the second of two."""
    generation = GENERATIONS[asked["generation"]]
    layout = asked.get("layout", "prefix_shared")
    batch = four_pairs(layout)
    trace: Trace
    with absent_cuda(tuple(asked["capability"])) as trace:
        with torch.device("cuda"):
            moe = asked.get("moe", False)
            fields = dict(generation.defaults) | SMALL | (EXPERTS if moe else {})
            config = transformers_config(generation, moe, fields, 0.0)
            model = AutoModelForCausalLM.from_config(config)
        use_autocast_experts(model)
        use_planned_attention(model, layout != "padded")
        model.train()
        optimizer = make_optimizer(model, OptimizerOptions())
        reference = torch.zeros(batch.target_id.numel(), device="cuda")
        for _ in range(2):
            trace.clear()
            training_step(model, optimizer, batch, reference, DTYPES[asked["precision"]])
        assert all(p.device.type == "cuda" for p in model.parameters())
    return {
        "kernels": sum(trace.kernels.values()),
        "waits": [f"{place.what} at {place.line}" for place in trace.waits],
        "uploads": [f"{place.what} at {place.line}" for place in trace.uploads],
        "attention": dict(trace.attention),
        "widened": trace.widened,
        "refusals": sorted(set(trace.refusals)),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([traced(asked) for asked in json.loads(sys.argv[1])]))
