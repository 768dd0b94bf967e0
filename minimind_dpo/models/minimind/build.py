"""From the tensors of a native file, or of a folder in MiniMind's form, to a transformers model.

tensors -> recognise -> fields -> transformers class, strictly loaded
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from minimind_dpo.models.errors import CheckpointError, named
from minimind_dpo.models.minimind.architecture import resolve_fields
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.folder import (
    FolderForm,
    fields_of_config,
    fields_without_use,
    generation_by_fields,
    with_overrides,
)
from minimind_dpo.models.minimind.generations import Generation
from minimind_dpo.models.minimind.lora_file import add_lora
from minimind_dpo.models.minimind.native_file import check_finite, main_dtype
from minimind_dpo.models.minimind.recognise import Dialect, common_prefix, recognise
from minimind_dpo.models.minimind.state_dict import (
    causal_mask,
    check_whole,
    is_mask,
    resolve_tie,
    to_transformers,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NativeSource:
    """Tensors as stored, on the CPU, and what is known of them.

    Attributes:
        tensors: By their keys in the file.
        where: The file or folder, for messages.
        form: What makes a folder of MiniMind's form out of them; None for a native file.
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    where: str
    form: FolderForm | None = None


def build(
    source: NativeSource,
    overrides: Mapping[str, Any],
    dtype: torch.dtype,
    dropout: float,
    device: str,
    lora: Path | None = None,
) -> tuple[PreTrainedModel, Dialect]:
    """The model, and what it was recognised as.

    Args:
        source: The tensors.
        overrides: Fields of the architecture, as the user named them.
        dtype: Number format of the model.
        dropout: Probability wherever the architecture drops.
        device: `meta` builds shapes alone, and checks the numbers all the same.
        lora: A `lora_*.pth` of MiniMind's own scripts, which is added to the weights.

    Raises:
        CheckpointError: They are not one whole model of a MiniMind generation.
    """
    where, form = source.where, source.form
    prefix = common_prefix(source.tensors)
    state = {key.removeprefix(prefix): tensor for key, tensor in source.tensors.items()}
    with named(where):
        generation, moe, fields = _architecture(state, form, overrides)
        mask_fill = _mask_fill(state, fields)
    if form and device != "meta" and (unused := fields_without_use(form.config, generation)):
        log.warning("%s/config.json has fields that are not read: %s", where, ", ".join(unused))
    check_finite({key: tensor for key, tensor in state.items() if not is_mask(key)}, where)
    file_dtype = main_dtype(state.values())
    if lora is not None:
        state = add_lora(state, lora)
    on_device = {key: tensor.to(device) for key, tensor in state.items()}
    with named(where):
        weights = to_transformers(on_device, generation, moe, fields)
        settings = transformers_config(generation, moe, fields, dropout)
        with no_init_weights(), torch.device(device):
            model = AutoModelForCausalLM.from_config(
                settings, dtype=dtype, attn_implementation="sdpa"
            )
        _load_strictly(model, weights)
    return model, Dialect(
        name=generation.name + ("_moe" if moe else ""),
        class_name=type(model).__name__,
        num_parameters=model.num_parameters(),
        file_dtype=file_dtype,
        fields=fields,
        keys=tuple(state),
        prefix=prefix,
        mask_fill=mask_fill,
        form=form and with_overrides(form, generation, overrides),
    )


def _architecture(
    state: Mapping[str, Tensor], form: FolderForm | None, overrides: Mapping[str, Any]
) -> tuple[Generation, bool, dict[str, Any]]:
    """Generation, whether it is a mixture of experts, and every field; the tensors are whole."""
    name = overrides.get("generation")
    if name is None and form is not None:
        name = generation_by_fields(form.config)
    shapes = {key: tensor.shape for key, tensor in state.items()}
    generation, moe = recognise(shapes, name)
    config_fields = fields_of_config(form.config, generation) if form else {}
    fields = resolve_fields(generation, moe, shapes, overrides, config_fields)
    resolve_tie(generation, fields, state)
    check_whole(state, generation, moe, fields)
    return generation, moe, fields


def _load_strictly(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    wrong = [
        f"{key} {tuple(tensor.shape)} where {tuple(state[key].shape)} is expected"
        for key, tensor in weights.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensor(s) have another shape than the first layer and "
            f"model.config imply: {'; '.join(wrong[:3])}. Check the overrides under model.config"
        )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys) if model.config.tie_word_embeddings else set()
    assert not unexpected, unexpected
    assert not set(missing) - tied, missing
    model.tie_weights()


def _mask_fill(state: Mapping[str, Tensor], fields: Mapping[str, Any]) -> float:
    """Value above the diagonal of v_learn's stored masks, which must be plain causal ones."""
    masks = {key: tensor for key, tensor in state.items() if is_mask(key)}
    if not masks:
        return float("-inf")
    size = fields["max_position_embeddings"]
    first, shape = next(iter(masks.values())), (1, 1, size, size)
    fill = first[0, 0, 0, -1].item() if size > 1 and first.shape == shape else float("-inf")
    for key, mask in masks.items():
        plain = mask.shape == shape and torch.equal(mask, causal_mask(size, fill, mask.dtype))
        if not plain or (size > 1 and not fill <= -1e4):
            raise CheckpointError(
                f"{key} is not the causal mask that this architecture stores (zero, and "
                f"a large negative number above the diagonal, shape (1, 1, {size}, {size})). The "
                "model was trained with another attention pattern, which is not supported"
            )
    if len(masks) != fields["num_hidden_layers"]:
        raise CheckpointError("some layers store a mask and some do not; it is not whole")
    return fill
