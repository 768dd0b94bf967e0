"""A toy run that trains in a fraction of a second: files, tokenizer, model, trainer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import transformers as tf
from lightning.pytorch.loggers.logger import Logger
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.options import DataOptions
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.training.callbacks.validation_schedule import ValidationSchedule
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.reference import OnlineReference
from minimind_dpo.training.resume.best import BestCheckpoint
from minimind_dpo.training.resume.callback import ResumeCheckpoint
from minimind_dpo.training.resume.checkpoint_io import AtomicCheckpointIO
from minimind_dpo.training.resume.random_state import RandomState


class Curves(Logger):
    """Keeps what is logged, at full precision, over several trainers."""

    name = version = "curves"

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[tuple[int, str], float] = {}

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.steps |= {(int(step or 0), name): float(value) for name, value in metrics.items()}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def write_pairs(path: Path, count: int, seed: int = 0) -> str:
    """Pairs of a few words, of different lengths."""
    draw = np.random.default_rng(seed)
    words = ["red", "blue", "sea", "sky", "tree", "stone", "rain", "fire"]

    def text(most: int) -> str:
        return " ".join(draw.choice(words, int(draw.integers(1, most))))

    rows = [
        {"prompt": f"{i} {text(6)}", "chosen": f"yes {text(9)}", "rejected": f"no {text(5)}"}
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


def toy_policy(dropout: float = 0.1) -> tf.GPT2LMHeadModel:
    """Two small layers, with dropout, so that random numbers matter."""
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=258,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=1,
        attn_pdrop=0.0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
    )
    model = tf.GPT2LMHeadModel(config)
    use_planned_attention(model, True)
    return model


@dataclass
class Toy:
    """Everything about one toy run; `fit` may be called for several launches of it."""

    folder: Path
    files: list[str]
    tokenizer: PreTrainedTokenizerFast
    trainer: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    every: int = 1
    keep: int = 1000
    dropout: float = 0.1
    extra: list[L.Callback] = field(default_factory=list)

    def data(self) -> PreferenceDataModule:
        options = {
            "train": self.files[:1],
            "val": self.files[1:],
            "max_length": 100,
            "chat_template": "none",
            "cache_dir": str(self.folder / "cache"),
            "batch_size": 2,
            "num_workers": 0,
            **self.loader,
        }
        return PreferenceDataModule(self.tokenizer, DataOptions(**options), seed=3, progress=False)

    def fit(
        self, run: str, curves: Curves | None = None, resume: Path | None = None, **changes: Any
    ) -> tuple[DPOModule, L.Trainer]:
        reference = toy_policy(0.0)
        module = DPOModule(
            toy_policy(self.dropout),
            OnlineReference(reference),
            optimizer=OptimizerOptions(lr=1e-2),
            schedule=ScheduleOptions("cosine", warmup_ratio=0.2),
        )
        states = self.folder / run / "checkpoints"
        settings = {"val_check_interval": 1, **self.trainer, **changes}
        callbacks = [
            RandomState(5),
            ValidationSchedule(
                settings.pop("val_check_interval"), settings.pop("check_val_every_n_epoch", None)
            ),
            BestCheckpoint(
                dirpath=states,
                filename="best-{step}",
                monitor="val/loss",
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            ResumeCheckpoint(states, self.every, keep=self.keep),
            *self.extra,
        ]
        options: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 3,
            "accumulate_grad_batches": 3,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "logger": curves or Curves(),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "plugins": [AtomicCheckpointIO()],
            "callbacks": callbacks,
            "default_root_dir": str(self.folder / run),
        }
        trainer = L.Trainer(**{**options, **settings})
        trainer.fit(module, datamodule=self.data(), ckpt_path=resume, weights_only=True)
        return module, trainer


@pytest.fixture
def toy(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Toy:
    """29 training pairs, 5 for validation: 5 steps of 2 x 3 pairs an epoch, the last one cut."""
    files = [write_pairs(tmp_path / "train.jsonl", 29), write_pairs(tmp_path / "val.jsonl", 5, 9)]
    return Toy(tmp_path, files, tokenizer)


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """Handlers belong to the process, and so to all tests."""
    import signal

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def curves_of() -> Callable[[], Curves]:
    """Makes a logger that remembers."""
    return Curves
