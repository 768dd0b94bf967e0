"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by way of peft.

Adapters are put into the model in place, so it stays the transformers model it was and everything
that runs it stays the same. They start as zero: the model with fresh adapters, and the model with
its adapters off, is the reference.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from minimind_dpo.disk import replace_folder, workspace
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.hub import quiet

MISSING = "model.lora needs a package that is not installed: pip install 'minimind-dpo[lora]'"


def add_adapters(
    model: PreTrainedModel,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: str | Sequence[str] = "all-linear",
) -> None:
    """Put adapters into a model and train them alone.

    Args:
        model: Changed in place; its own weights are frozen.
        r: Rank.
        alpha: The adapters' output is multiplied by alpha / r.
        dropout: Probability, before the adapters.
        target_modules: Names of the layers, or `all-linear` for every linear one but the head.

    Raises:
        ModuleNotFoundError: peft is not installed.
        CheckpointError: No layer has such a name.
    """
    try:
        from peft import LoraConfig
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    targets: Any = target_modules if isinstance(target_modules, str) else list(target_modules)
    settings = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        model.add_adapter(settings)
    except (ValueError, re.error) as error:
        why = " ".join(str(error).split())[:200]  # peft may print the whole model
        raise CheckpointError(f"model.lora.target_modules={target_modules}: {why}") from error


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether `add_adapters` was called."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextlib.contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """Run the model as it was before the adapters."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def save_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapters alone, in peft's own format."""
    with workspace(folder) as space, quiet():
        model.save_pretrained(space / folder.name)
        replace_folder(space / folder.name, folder)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters into the weights and take them out: a plain model again, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            base = module.get_base_layer()
            assert isinstance(base, nn.Module)
            setattr(model.get_submodule(parent), child, base)
    model._hf_peft_config_loaded = False
    del model.peft_config


def base_name(parameter: str) -> str | None:
    """Name that a parameter had before the adapters; None for the adapters' own."""
    return None if ".lora_" in parameter else parameter.replace(".base_layer.", ".")
