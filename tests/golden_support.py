"""Numbers of the original programs: `tests/golden`, and the tiny models they were taken from.

A float32 model is drawn again from its seed, as it was drawn for the original program. A float16
one is stored: a CPU whose vector instructions round `randn` in another way would give some of its
weights the neighbouring half-precision number.
"""

from __future__ import annotations

import gzip
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).resolve().parent / "golden"

NATIVE = (
    "v_learn",
    "v_learn_half",
    "v1",
    "v1_moe",
    "v2a",
    "v2a_moe",
    "v2",
    "v2_moe",
    "v3",
    "v3_half",
    "v3_moe_top1",
    "v3_moe_top2",
    "v3_moe_fused",
)
HUB = ("hf_llama", "hf_qwen3", "hf_qwen3_moe")


@cache
def numbers(name: str) -> Any:
    """A file of `tests/golden` by its path without suffixes, as `trl/losses`; not to be changed."""
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))


def arrays(name: str) -> dict[str, Tensor]:
    """Stored weights, bit for bit."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def drawn(seed: int, shapes: dict[str, list[int]], tied: dict[str, str]) -> dict[str, Tensor]:
    """Weights of a float32 model, drawn in the order of its keys from one generator."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if key in tied:
            state[key] = state[tied[key]]
        elif key.endswith(".mask"):  # a buffer, which the notebook's model keeps in its file
            state[key] = torch.full(shape, -math.inf).triu(1)
        else:
            state[key] = _initial(key, torch.randn(shape, generator=generator))
    return state


def _initial(key: str, noise: Tensor) -> Tensor:
    if noise.dim() < 2:
        return 0.1 * noise if key.endswith("bias") else 1 + 0.3 * noise
    if "embed" in key or key == "lm_head.weight":
        return 0.08 * noise
    return noise * (1.3 / math.sqrt(noise.shape[-1]))


class Golden:
    """A tiny model of one generation, written as its program wrote it, and that program's numbers.

    Attributes:
        data: All its numbers.
        path: The native file, or the folder of a transformers model.
        config: What `load_model` cannot read off the file; empty for a folder.
        input_ids: int64 (2, tokens).
        logits: float32 (2, positions, vocabulary), at `data["positions"]`.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.data: dict[str, Any] = numbers(f"models/{name}")
        native = name in NATIVE
        # v1 and v2a have the same keys, and both tiny ones 1 key row to 2 query rows.
        generation = {"generation": self.data["generation"]}
        self.config = {**self.data["config"], **generation} if native else {}
        self.path = folder / name / self.data["checkpoint"] if native else folder / name
        self.input_ids = torch.tensor(self.data["input_ids"])
        self.logits = torch.tensor(self.data["logits"])
        if not (folder / name).exists():
            (folder / name).mkdir(parents=True)
            self._write(self.state(name))

    def state(self, name: str) -> dict[str, Tensor]:
        """The model's weights by its own keys."""
        shapes, tied = self.data["keys"], self.data["tied"]
        if self.data["stored_dtype"] == "float32":
            return drawn(self.data["seed"], shapes, tied)
        state = arrays(f"models/{name}")
        return {key: state[tied.get(key, key)] for key in shapes}

    def _write(self, state: dict[str, Tensor]) -> None:
        if self.config:
            torch.save(state, self.path)
            return
        write_hub_folder(self.path, self.data["hf_config"], state)
        generation = json.dumps(self.data["hf_generation_config"])
        (self.path / "generation_config.json").write_text(generation)


def write_hub_folder(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> None:
    """A model as transformers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
