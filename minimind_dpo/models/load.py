"""Load a model, its tokenizer and what it was recognised as: `load_model`.

    native MiniMind file -> read -> recognise -> fields -> transformers class, strictly loaded
    Hugging Face folder or hub name -> AutoModelForCausalLM, strictly loaded

On the device `meta` the same happens to shapes alone: what is wrong with a checkpoint is found in a
moment and in no memory, long before its weights are needed.

Dropout is off unless asked for: active in the policy alone it adds noise to every log-ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.hub import Device, load_hub_model, read_config
from minimind_dpo.models.minimind import v_learn  # noqa: F401  (registers it with transformers)
from minimind_dpo.models.minimind.architecture import resolve_fields, transformers_config
from minimind_dpo.models.minimind.native_file import check_finite, locate, read_tensors
from minimind_dpo.models.minimind.recognise import Dialect, common_prefix, recognise
from minimind_dpo.models.minimind.state_dict import (
    causal_mask,
    check_whole,
    is_mask,
    to_transformers,
)
from minimind_dpo.models.tokenizers import (
    check_vocabulary,
    find_tokenizer,
    no_tokenizer,
    set_special_tokens,
)


@dataclass
class LoadedModel:
    """A model as loaded.

    Attributes:
        model: A transformers model, in evaluation mode.
        dialect: What it was recognised as, and what exporting it back needs.
        path: Where it came from.
    """

    model: PreTrainedModel
    dialect: Dialect
    path: str
    _tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    _tokenizer_wanted: bool = True

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer; None only where the caller asked for none.

        Raises:
            CheckpointError: None was named and none lies beside the model.
        """
        if self._tokenizer is None and self._tokenizer_wanted:
            raise no_tokenizer(self.path)
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was found or given."""
        return self._tokenizer is not None

    def describe(self) -> str:
        """One line for the log: generation, class, parameters in millions, file dtype."""
        return self.dialect.describe()


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
) -> LoadedModel:
    """Load a causal language model with its tokenizer.

    Args:
        path: A native MiniMind file of any generation, a Hugging Face folder, a hub name, or
            `modelscope:NAME`.
        tokenizer: Folder, hub name or a tokenizer; None looks beside the model, False asks for
            none.
        config: Architecture fields, by the generation's own names (`head_num`, `n_heads`, ...) or
            transformers'; for what a file cannot tell. `generation` decides between v1 and v2a
            where their usual sign, the ratio of query to key heads, misleads.
        dtype: Number format of the loaded weights.
        dropout: Probability used wherever the architecture can drop; 0 is right for DPO.
        trust_remote_code: Let a hub model run the Python code that comes with it.
        device: `meta` builds the model without its weights, and refuses what `cpu` would refuse;
            but whether numbers are finite it looks up in native files and in a folder's
            safetensors alone, not in `.bin` files or under a hub name.
        key: The configuration key that names the path, for messages.

    Returns:
        The model on that device in evaluation mode, with transformers' own attention.

    Raises:
        CheckpointError: Whatever is wrong with path, file, config or tokenizer.
    """
    if not 0.0 <= dropout < 1.0:
        raise CheckpointError(f"model.dropout={dropout} must be at least 0 and below 1")
    if not dtype.is_floating_point:
        raise CheckpointError(f"dtype={dtype} must be a floating point type")
    source = locate(path, key)
    native = isinstance(source, Path) and source.is_file()
    settings = None if native else read_config(source, trust_remote_code, key)
    found = find_tokenizer(source, tokenizer, trust_remote_code)
    overrides = dict(config or {})
    if settings is None:
        model, dialect = _load_native(Path(source), overrides, dtype, dropout, device)
    else:
        model, dialect = load_hub_model(
            source, settings, overrides, dtype, dropout, trust_remote_code, device, key
        )
    if found is not None:
        check_vocabulary(found, model, f"{key}={path}")
        if dialect.generation is not None:
            set_special_tokens(model, found)
    return LoadedModel(model.eval(), dialect, str(path), found, tokenizer is not False)


def _load_native(
    path: Path, overrides: dict[str, Any], dtype: torch.dtype, dropout: float, device: Device
) -> tuple[PreTrainedModel, Dialect]:
    where = str(path)
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{where} is a safetensors file; give model.path the Hugging Face folder that holds it "
            "and its config.json"
        )
    stored = read_tensors(path)
    prefix = common_prefix(stored)
    state = {key.removeprefix(prefix): tensor for key, tensor in stored.items()}
    shapes = {key: tensor.shape for key, tensor in state.items()}
    generation, moe = recognise(shapes, where, overrides.get("generation"))
    fields = resolve_fields(generation, moe, shapes, overrides, where)
    check_whole(state, generation, moe, fields, where)
    check_finite({key: tensor for key, tensor in state.items() if not is_mask(key)}, where)
    mask_fill = _mask_fill(state, fields, where)
    placed = {key: tensor.to(device) for key, tensor in state.items()}
    weights = to_transformers(placed, generation, moe, fields, where)
    settings = transformers_config(generation, moe, fields, dropout)
    with no_init_weights(), torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    _load_strictly(model, weights, where)
    return model, Dialect(
        name=generation.name + ("_moe" if moe else ""),
        class_name=type(model).__name__,
        num_parameters=model.num_parameters(),
        file_dtype=_main_dtype(state),
        fields=fields,
        keys=tuple(state),
        prefix=prefix,
        mask_fill=mask_fill,
    )


def _load_strictly(model: PreTrainedModel, weights: dict[str, Tensor], where: str) -> None:
    own = model.state_dict()
    wrong = [
        f"{key} {tuple(tensor.shape)} where {tuple(own[key].shape)} is expected"
        for key, tensor in weights.items()
        if key in own and own[key].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{where}: {len(wrong)} tensor(s) have another shape than the first layer and "
            f"model.config imply: {'; '.join(wrong[:3])}. Check the overrides under model.config"
        )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    assert not unexpected, unexpected
    assert not set(missing) - tied, missing
    model.tie_weights()


def _mask_fill(state: Mapping[str, Tensor], fields: Mapping[str, Any], where: str) -> float:
    """Value above the diagonal of v_learn's stored masks, which must be plain causal ones."""
    masks = {key: tensor for key, tensor in state.items() if is_mask(key)}
    if not masks:
        return float("-inf")
    size = fields["max_position_embeddings"]
    first = next(iter(masks.values()))
    fill = first[..., 0, -1].item() if size > 1 else float("-inf")
    for key, mask in masks.items():
        plain = mask.shape == (1, 1, size, size) and torch.equal(
            mask, causal_mask(size, fill, mask.dtype)
        )
        if not plain or (size > 1 and not fill <= -1e4):
            raise CheckpointError(
                f"{where}: {key} is not the causal mask that this architecture stores (zero, and "
                f"a large negative number above the diagonal, shape (1, 1, {size}, {size})). The "
                "model was trained with another attention pattern, which is not supported"
            )
    if len(masks) != fields["num_hidden_layers"]:
        raise CheckpointError(f"{where}: some layers store a mask and some do not; it is not whole")
    return fill


def _main_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    counts: dict[torch.dtype, int] = {}
    for tensor in state.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])
