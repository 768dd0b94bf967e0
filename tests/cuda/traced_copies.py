"""What leaves an absent CUDA device for the host, and who waits for it: JSON on the last line."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from absent_device import Trace, absent_cuda  # isort: skip

import numpy as np
import torch
from traced_steps import SMALL
from transformers import AutoModelForCausalLM, PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.scoring import begin_scoring
from minimind_dpo.models.load import load_model  # noqa: F401  (makes v_learn known)
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.training.optim import make_optimizer
from minimind_dpo.training.options import OptimizerOptions
from minimind_dpo.training.resume.background_write import is_on_cuda, set_aside


def seen(trace: Trace) -> dict[str, Any]:
    """Waits and copies since the last look."""
    blocking = [place.line for place in trace.uploads if place.what == "blocking"]
    waits = [f"{place.what} at {place.line}" for place in trace.waits] + blocking
    found = {"waits": waits, "downloads": trace.downloads}
    trace.clear()
    return found


def state_set_aside(trace: Trace, model: PreTrainedModel) -> list[dict[str, Any]]:
    """A state is copied, then its copy is waited for."""
    optimizer = make_optimizer(model, OptimizerOptions())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    trace.clear()
    copied, wait = set_aside(state)
    assert is_on_cuda(state)
    assert not is_on_cuda(copied)
    assert type(copied["state_dict"]) is type(state["state_dict"])
    begun = seen(trace)
    wait()
    return [begun, seen(trace), {"parameters": len(list(model.parameters()))}]


def reference_pass(trace: Trace, model: PreTrainedModel) -> list[dict[str, Any]]:
    """The second batch is begun before the first one is read."""
    random = np.random.default_rng(0)
    pairs = [
        TokenizedPair(*(random.integers(0, 6400, n).astype(np.int32) for n in (9, 6, 4)), index)
        for index in range(2)
    ]
    trace.clear()
    for pair in pairs:
        begin_scoring(
            model,
            [pair],
            Collator("prefix_shared"),
            device=torch.device("cuda"),
            precision_context=contextlib.nullcontext,
        )
    return [seen(trace)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    generation = GENERATIONS["v3"]
    with absent_cuda() as trace:
        with torch.device("cuda"):
            fields = dict(generation.defaults) | SMALL
            config = transformers_config(generation, False, fields, 0.0)
            model = AutoModelForCausalLM.from_config(config)
        print(json.dumps([state_set_aside(trace, model), reference_pass(trace, model)]))
