"""Write a model for others to load: a Hugging Face folder, or the native file it came from.

Both are written under a temporary name beside the target, flushed to disk and then renamed, so a
target is never half written: it is the old one or the new one.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.disk import replace_folder, replacing, workspace
from minimind_dpo.models.attention.planned import plain_attention
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.minimind.native_file import check_finite
from minimind_dpo.models.minimind.recognise import Dialect, dtype_name
from minimind_dpo.models.minimind.state_dict import to_native
from minimind_dpo.models.tokenizers import end_of_turn_id


def native_name(dialect: Dialect, stage: str = "dpo") -> str:
    """File name that MiniMind's own tools look for: `dpo_512.pth`, `dpo_640_moe.pth`.

    Raises:
        CheckpointError: The model did not come from a native file.
    """
    if dialect.generation is None:
        raise CheckpointError("only a model that came from a native MiniMind file has such a name")
    return f"{stage}_{dialect.fields['hidden_size']}{'_moe' if dialect.moe else ''}.pth"


def save_native(
    model: PreTrainedModel,
    dialect: Dialect,
    path: str | Path,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the native file of a model: the keys its input had, in the same order.

    Args:
        model: The model, of the class it was loaded as.
        dialect: As loaded.
        path: The file to write; its folder is made.
        dtype: Number format; MiniMind's own files are float16.

    Returns:
        The path.

    Raises:
        CheckpointError: The dialect has no native form, or a weight is not finite in `dtype`.
    """
    path = Path(path)
    # NOTE: copies, one for each key: the tied embedding is stored twice, as in the original.
    state = to_native(model.state_dict(), dialect, dtype)
    weights = {key: tensor for key, tensor in state.items() if not key.endswith(".mask")}
    check_finite(weights, f"export to {path} as {dtype_name(dtype)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
    return path


def save_hf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a Hugging Face folder: safetensors, configuration, tokenizer, chat template.

    `AutoModelForCausalLM` and `AutoTokenizer` load it without this project, except the `v_learn`
    architecture, which importing `minimind_dpo.models.load` makes known.

    Args:
        model: The model; it is left as it is.
        tokenizer: Written beside it; generation is told to stop at its end of turn.
        folder: The folder to write; an earlier one is replaced as a whole.
        dtype: Number format; None keeps the model's own, and so its exact logits.

    Returns:
        The folder.

    Raises:
        CheckpointError: A weight is not finite in `dtype`, or `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; name a folder to export to")
    state = model.state_dict()
    if dtype is not None:
        state = {key: tensor.to(dtype) for key, tensor in state.items()}
    check_finite(state, f"export to {folder}")
    with workspace(folder) as space:
        temporary = space / folder.name
        dtype_before = model.config.dtype
        with plain_attention(model), quiet():
            model.save_pretrained(temporary, state_dict=state)
        model.config.dtype = dtype_before  # saving leaves a string there
        _name_dtype(temporary / "config.json", dtype or model.dtype)
        _generation_config(model, tokenizer).save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        replace_folder(temporary, folder)
    return folder


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """Let config.json name the format that was written; transformers writes the model's own."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = dtype_name(dtype)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> GenerationConfig:
    """The model's own generation settings, stopping at the end of a turn as well."""
    settings = deepcopy(model.generation_config) or GenerationConfig()
    if tokenizer is None:
        return settings
    known = settings.eos_token_id
    ends = [] if known is None else list(known) if isinstance(known, list) else [known]
    end = end_of_turn_id(tokenizer)
    if end is not None and end not in ends:
        ends.append(end)
    if ends:
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings
