"""Load a model, its tokenizer and what it was recognised as: `load_model`.

    native MiniMind file, or a folder in MiniMind's own form -> minimind.build
    Hugging Face folder or hub name                          -> AutoModelForCausalLM, strictly
    adapters, and the model they belong to                   -> one of the above, adapters added

On the device `meta` the same happens to shapes alone: what is wrong with a checkpoint is found in a
moment and in no memory, long before its weights are needed.

Dropout is off unless asked for: active in the policy alone it adds noise to every log-ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.experts import use_autocast_experts
from minimind_dpo.models.hub import (
    Device,
    LoadOptions,
    load_hub_model,
    read_config,
    read_settings,
)
from minimind_dpo.models.locate import with_base
from minimind_dpo.models.lora import add_saved_adapters
from minimind_dpo.models.minimind.build import NativeSource, build
from minimind_dpo.models.minimind.folder import MODEL_TYPE, fetch_folder, read_folder
from minimind_dpo.models.minimind.native_file import read_tensors
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.models.options import ModelOptions
from minimind_dpo.models.tokenizers import (
    check_vocabulary,
    find_tokenizer,
    no_tokenizer,
    set_special_tokens,
)


@dataclass(repr=False)
class LoadedModel:
    """A model as loaded.

    Attributes:
        model: A transformers model, in evaluation mode.
        dialect: What it was recognised as, and what exporting it back needs.
        path: Where it came from.
        home: Path or hub name from which transformers itself loads this very model; None where
            there is none, as for a native file.
    """

    model: PreTrainedModel
    dialect: Dialect
    path: str
    home: str | None = None
    _tokenizer: PreTrainedTokenizerBase | None = None
    _needs_tokenizer: bool = True

    def __repr__(self) -> str:
        return f"LoadedModel({self.path!r}, {self.describe()!r})"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer; None only where the caller asked for none.

        Raises:
            CheckpointError: None was named and none lies beside the model.
        """
        if self._tokenizer is None and self._needs_tokenizer:
            raise no_tokenizer(self.path)
        return self._tokenizer

    def describe(self) -> str:
        """One line for the log: generation, class, millions of parameters, how many are trained."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        total, trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
        share = "all" if trained == total else f"{trained / 1e6:.3f}M of {total / 1e6:.3f}M"
        return f"{self.dialect.describe()}, {share} trained"


def load_model(
    path: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | Literal[False] | None = None,
    config: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    dropout: float = 0.0,
    trust_remote_code: bool = False,
    device: Device = "cpu",
    key: str = "model.path",
    adapters: str | Path | None = None,
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Args:
        path: A native MiniMind file of any generation, a Hugging Face folder, a hub name,
            `modelscope:NAME`, a run's folder (its export), or its folder of adapters (which are
            added to the model they belong to).
        tokenizer: Folder, hub name or a tokenizer; None looks beside the model, False asks for
            none.
        config: Architecture fields, by the generation's own names (`head_num`, `n_heads`, ...) or
            transformers'; for what a file cannot tell. `generation` decides between v1 and v2a
            where their usual sign, the ratio of query to key heads, misleads.
        dtype: Number format of the loaded weights.
        dropout: Probability used wherever the architecture can drop; 0 is right for DPO.
        trust_remote_code: Let a model run the Python code that comes with it; not needed for
            MiniMind's own, which is not run.
        device: `meta` builds the model without its weights, and refuses what `cpu` would refuse;
            but whether numbers are finite it looks up in native files and in a folder's
            safetensors alone, not in `.bin` files or under a hub name.
        key: The configuration key that names the path, for messages.
        adapters: Low-rank adapters to add to the weights: a folder that peft wrote, or MiniMind's
            own `lora_*.pth`.

    Returns:
        The model on that device in evaluation mode, with transformers' own attention.

    Raises:
        CheckpointError: Whatever is wrong with path, file, config or tokenizer.
    """
    options = LoadOptions(dtype, dropout, trust_remote_code, device, key)
    source, adapters = with_base(path, adapters, key)
    overrides = dict(config or {})
    native = _read_native(source, options)
    # What is wrong with a config.json would be told of its tokenizer, which reads it too.
    settings = read_config(source, overrides, options) if native is None else None
    text_tokenizer = find_tokenizer(source, tokenizer, trust_remote_code)
    if native is not None:
        lora = adapters if adapters is not None and adapters.is_file() else None
        model, dialect = build(native, overrides, dtype, dropout, device, lora)
    else:
        assert settings is not None
        model, dialect = load_hub_model(source, settings, options)
    if adapters is not None and adapters.is_dir():
        add_saved_adapters(model, adapters)
    elif adapters is not None and native is None:
        raise CheckpointError(
            f"model.adapters={adapters} can be added to a native file, or to a folder in "
            f"MiniMind's own form, and {key}={path} is neither"
        )
    if text_tokenizer is not None:
        check_vocabulary(text_tokenizer, model, f"{key}={path}")
        if dialect.generation is not None:
            set_special_tokens(model, text_tokenizer)
    use_autocast_experts(model)
    plain = native is None and adapters is None and not overrides
    home = str(source.absolute() if isinstance(source, Path) else source) if plain else None
    return LoadedModel(
        model.eval(), dialect, str(path), home, text_tokenizer, tokenizer is not False
    )


def load_configured(
    options: ModelOptions,
    tokenizer: PreTrainedTokenizerBase | Literal[False],
    *,
    reference: str | None = None,
    dtype: str | None = None,
    dropout: float = 0.0,
    device: Device = "cpu",
) -> LoadedModel:
    """The model that `model.*` names, or a reference of its own at another path, loaded alike.

    What else is set under `model` (`config`, `adapters`) is of the model at `model.path` alone.
    """
    return load_model(
        reference or options.path,
        tokenizer,
        None if reference else options.config,
        getattr(torch, dtype or options.dtype),
        dropout=dropout,
        trust_remote_code=options.trust_remote_code,
        device=device,
        key="reference.path" if reference else "model.path",
        adapters=None if reference else options.adapters,
    )


def _read_native(source: Path | str, options: LoadOptions) -> NativeSource | None:
    """The tensors of a native file or of a folder in MiniMind's form; None for another form."""
    if isinstance(source, Path) and source.is_file():
        if source.suffix == ".safetensors":
            raise CheckpointError(
                f"{options.key}={source} is a safetensors file; give it the Hugging Face folder "
                "that holds it and its config.json"
            )
        return NativeSource(read_tensors(source), str(source))
    settings = read_settings(source, options.key)
    kind = settings.get("model_type")
    if kind in ("minimind-v", "minimind-o"):
        what = "images" if kind == "minimind-v" else "speech"
        raise CheckpointError(
            f"{options.key}={source} is a model of {what} and text ({kind}). Only models of text "
            "alone can be trained here"
        )
    if kind != MODEL_TYPE:
        return None
    folder = fetch_folder(source, options.key)
    tensors, form = read_folder(folder, settings, options.key)
    return NativeSource(tensors, str(folder), form)
