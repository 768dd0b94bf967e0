"""What tests of training share: a logger with a memory, tiny models, made-up pairs, a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.batches.step_plan import StepSampler, StepShape
from minimind_dpo.data.datamodule import LaidOutPairs
from minimind_dpo.models.attention.planned import use_planned_attention

VOCABULARY = 61


class Memory(Logger):
    """Keeps what is logged, at full precision."""

    name = version = "memory"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps.setdefault(int(step or 0), {}).update(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def tiny_model(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    layout: str = "prefix_shared",
    layers: int = 2,
) -> PreTrainedModel:
    """A Qwen3 of few layers with weights that matter."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=64,
        )
    ).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    use_planned_attention(model, layout != "padded")
    return model


def made_up_pairs(count: int, seed: int = 0) -> list[TokenizedPair]:
    """Pairs of random ids and lengths."""
    generator = np.random.default_rng(seed)
    return [
        TokenizedPair(
            *(generator.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths),
            index=index,
            source=f"made_up.jsonl:{index + 1}",
        )
        for index, lengths in enumerate(generator.integers(2, 12, (count, 3)).tolist())
    ]


def loader(
    pairs: Sequence[TokenizedPair],
    batch_size: int,
    accumulate: int = 1,
    layout: str = "prefix_shared",
    **options: Any,
) -> DataLoader[PreferenceBatch]:
    """Micro-batches of some pairs, in their order unless asked otherwise."""
    collate = Collator(layout, max_length=64)
    lengths = [[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]
    sampler = StepSampler(
        np.arange(len(pairs)),
        collate.tokens(np.array(lengths)),
        StepShape(batch_size, accumulate),
        chosen_lengths=np.array(lengths)[:, 1],
        **{"shuffle": False, **options},
    )
    return DataLoader(LaidOutPairs(pairs, collate), sampler=sampler, batch_size=None)  # type: ignore[arg-type]


def quiet_trainer(**options: Any) -> L.Trainer:
    """A CPU trainer that writes nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "logger": Memory(),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(**{**defaults, **options})
