"""The policy of a finished run, or another model, with the chat that its prompts are written by."""

from __future__ import annotations

from pathlib import Path

import torch

from minimind_dpo.config.commands import exported
from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.kernels.cpu_matmul import use_chosen_library
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.tokenizers import need_tokenizer


def load_policy(
    config: Config, run: Path | None, device: torch.device | None = None
) -> tuple[LoadedModel, Chat]:
    """Load what a run has exported, or `model.path`.

    Args:
        config: Of the run, as `Command.config` gives it, or with `model.path`.
        run: The run's folder; None for none.
        device: Where the model is to run; None leaves it on the CPU.

    Raises:
        CheckpointError: It cannot be loaded, or the run has exported nothing.
        ConfigError: Its chat template cannot be used.
    """
    model = config.model
    whole = run is not None and exported(run)
    source, named = (str(run), None) if whole else (model.path, model.tokenizer)
    chat = Chat(need_tokenizer(source, named, model.trust_remote_code), config.data)
    policy = load_model(
        model.path if run is None else str(run),
        chat.tokenizer,
        {} if whole else model.config,
        getattr(torch, model.dtype),
        trust_remote_code=model.trust_remote_code,
        key="model.path" if run is None else "run",
        adapters=model.adapters if run is None else None,
    )
    use_chosen_library(policy.model)
    torch.nn.Module.to(policy.model, device or "cpu")
    return policy, chat


def device_of(config: Config) -> torch.device:
    """Where a command runs its models: as training chooses, on one device."""
    kind = config.trainer.accelerator
    if kind in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    mps = kind in ("auto", "gpu", "mps") and torch.backends.mps.is_available()
    return torch.device("mps" if mps else "cpu")
