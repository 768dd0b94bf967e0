"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) by way of peft.

Adapters are put into the model in place, so it stays the transformers model it was and everything
that runs it stays the same. They start as zero: the model with fresh adapters, and the model with
its adapters off, is the reference.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.disk import replace, workspace
from minimind_dpo.models.errors import CheckpointError, reason
from minimind_dpo.models.export import check_own_folder, save_hf
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.locate import BASE
from minimind_dpo.models.minimind.native_file import check_finite, check_tensors
from minimind_dpo.models.older_transformers import read_json, write_json
from minimind_dpo.models.options import LoraOptions
from minimind_dpo.models.weight_files import stored_tensors

MISSING = "model.lora needs a package that is not installed: pip install 'minimind-dpo[lora]'"


def add_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put adapters into a model, in place, and train them alone.

    Args:
        model: Its own weights are frozen.
        options: Their rank is above 0.

    Raises:
        ModuleNotFoundError: peft is not installed.
        CheckpointError: No layer has such a name, or it is the head's.
    """
    try:
        from peft import LoraConfig
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(MISSING) from error
    settings = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=options.target_modules,
        task_type="CAUSAL_LM",
    )
    where = f"model.lora.target_modules={options.target_modules}"
    try:
        with _without_warnings():
            model.add_adapter(settings)
    except (ValueError, re.error) as error:
        raise CheckpointError(f"{where}: {reason(error)}") from error
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise CheckpointError(
            f"{where}: the head ({_head_name(model)}) cannot have adapters, since it is run in "
            "chunks of the vocabulary. Leave it out"
        )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep peft's out of the log: of a tied head, which is refused, and of weights of experts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _head_name(model: PreTrainedModel) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


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


def save_and_merge_adapters(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    base: str | None,
) -> None:
    """Write the adapters alone, in peft's own format, and then add them into the weights, in place.

    Args:
        model: With adapters; a plain model again after it.
        tokenizer: Written beside the base.
        folder: The folder to write.
        base: Path or hub name of the model without the adapters; where there is none, that model is
            written into the folder too.
    """
    check_own_folder(folder)
    with workspace(folder) as space:
        draft = space / folder.name
        with quiet():
            model.save_pretrained(draft)
        (draft / "generation_config.json").unlink(missing_ok=True)  # of the model, not of adapters
        settings = read_json(draft / "adapter_config.json")
        settings["base_model_name_or_path"] = base or str((folder / BASE).absolute())
        write_json(draft / "adapter_config.json", settings)
        layers = take_adapters_out(model)
        if base is None:
            save_hf(model, tokenizer, draft / BASE)
        replace(draft, folder)
    for layer in layers:
        layer.merge(safe_merge=True)


def add_saved_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapters in a folder that peft wrote into the weights of their model, in place.

    On the device `meta` it is looked up whether they fit.

    Raises:
        CheckpointError: They are damaged, not low-rank ones, or not of this model; or peft is not
            installed.
    """
    where = f"model.adapters={folder}"
    try:
        from peft import LoraConfig, PeftConfig
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{where} needs a package that is not installed: pip install 'minimind-dpo[lora]'"
        ) from error
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{where}: {weights.name} is missing; other formats are not read")
    tensors = check_tensors(dict(stored_tensors(weights)), weights)
    check_finite(tensors, str(weights))
    try:
        settings = PeftConfig.from_pretrained(str(folder))
        if not isinstance(settings, LoraConfig):
            raise CheckpointError(f"its adapters are {settings.peft_type}, and only LoRA is read")
        with quiet(), _without_warnings():
            report = model.load_adapter(
                peft_config=settings,  # type: ignore[arg-type]
                adapter_state_dict=tensors,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # settings of other versions, layers that are not there
        raise CheckpointError(f"{where} cannot be added to the model: {reason(error)}") from error
    wrong = sorted(
        map(str, {*report.missing_keys, *report.unexpected_keys, *report.mismatched_keys})
    )
    if wrong:
        raise CheckpointError(
            f"{where} belongs to another model: {len(wrong)} keys do not fit, {wrong[0]} first"
        )
    for layer in take_adapters_out(model):
        if model.device.type != "meta":
            layer.merge(safe_merge=True)


def take_adapters_out(model: PreTrainedModel) -> list[Any]:
    """Make the model what it was, in place; returns peft's layers, whose `merge` adds them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)
    }
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        # One module may have several around it: those of the two stacked weights of experts.
        if parent not in layers:
            base = layer.get_base_layer()
            assert isinstance(base, nn.Module)
            setattr(model.get_submodule(parent), child, base)
    model._hf_peft_config_loaded = False
    del model.peft_config
    model.requires_grad_(True)
    return list(layers.values())


def base_name(parameter: str) -> str | None:
    """Name that a parameter had before the adapters; None for the adapters' own."""
    return None if ".lora_" in parameter else parameter.replace(".base_layer.", ".")
