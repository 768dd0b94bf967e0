"""What every way trains on: one model, one token store, one order of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from minimind_dpo.data.options import DataOptions
from minimind_dpo.data.store.prepare import prepare_store
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.data.tokenize.pair_tokenizer import PairTokenizer
from minimind_dpo.demo import PREFERENCES, TOKENIZER
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS

VOCABULARY = 6400


@dataclass(frozen=True, slots=True)
class Shape:
    """A minimind-3 of random weights: the FFN is 64 ceil(pi d / 64) wide, as the original's."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int


SHAPES = {
    "minimind3-512x8": Shape(512, 8, 8, 4),
    "minimind3-768x8": Shape(768, 8, 8, 4),
    "minimind3-tiny": Shape(64, 2, 4, 2),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """A model, a store and an order.

    Attributes:
        model: Native file or Hugging Face folder.
        tokenizer: Its folder.
        store: Folder of the token store.
        order: int64, rows of the store, shuffled; pairs of a round are cut from it in turn.
        lengths: int32 (rows, 3), tokens of prompt, chosen and rejected.
    """

    model: str
    tokenizer: str
    store: str
    order: np.ndarray
    lengths: np.ndarray

    def take(self, start: int, count: int) -> list[int]:
        """`count` rows from position `start` of the order, again from its beginning at its end."""
        positions = np.arange(start, start + count) % len(self.order)
        return [int(row) for row in self.order[positions]]


def prepare(
    model: str,
    tokenizer: str | None,
    data: list[str],
    *,
    max_length: int,
    seed: int,
    folder: Path,
) -> Workload:
    """Build whatever is not there yet, in `folder`.

    Args:
        model: Name in `SHAPES`, native file or Hugging Face folder.
        tokenizer: Folder; None for the one beside the model, or the demo's for a shape.
        data: Preference files; empty for the demo's.
        max_length: Longest prompt and completion.
        seed: Of weights and order.
        folder: For the model and the token store.
    """
    chosen = tokenizer or str(TOKENIZER if model in SHAPES else _folder_of(model))
    loaded = AutoTokenizer.from_pretrained(chosen)
    if model in SHAPES:
        model = str(_write_model(SHAPES[model], loaded, seed, folder))
    options = DataOptions(max_length=max_length, cache_dir=str(folder / "cache"), on_error="skip")
    rules = PairTokenizer(loaded, options)
    store = prepare_store(data or [str(PREFERENCES)], rules, options, progress=False)
    order = np.random.default_rng(seed).permutation(len(store))
    return Workload(model, chosen, str(store.path), order, np.array(store.lengths))


def open_store(path: str) -> TokenStore:
    """The store, in a measuring process."""
    return TokenStore(path, verify=False)


def _folder_of(model: str) -> Path:
    path = Path(model)
    return path.parent if path.is_file() else path


def _write_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int, folder: Path) -> Path:
    """A native minimind-3 file of seeded random weights."""
    generation = GENERATIONS["v3"]
    fields = dict(generation.defaults) | {
        "vocab_size": max(VOCABULARY, len(tokenizer)),
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": 64 * math.ceil(math.pi * shape.hidden / 64),
    }
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(transformers_config(generation, False, fields, 0.0))
    path = folder / f"full_sft_{shape.hidden}.pth"
    torch.save(model.state_dict(), path)
    return path
