"""Write a model for others to load: a Hugging Face folder, or the native file it came from.

Both are written under a temporary name beside the target, flushed to disk and then renamed, so a
target is never half written: it is the old one or the new one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.disk import replace, replacing, workspace
from minimind_dpo.models.attention.planned import plain_attention
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.locate import BASE
from minimind_dpo.models.minimind.native_file import check_finite, dtype_name
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.models.minimind.state_dict import to_native
from minimind_dpo.models.older_transformers import add_older_names, read_json, write_json
from minimind_dpo.models.tokenizers import end_of_turn_id
from minimind_dpo.os_errors import first_line

_FILES: Final = (
    *("config.json", "generation_config.json", "model*.safetensors", "model*.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("spiece.model", "*.tiktoken", "*.jinja", "additional_chat_templates"),
    *("*.py", "*.pth", "*.gguf", "Modelfile", ".*.tmp", "README.md"),
    *("adapter_config.json", "adapter_model.safetensors", BASE),
)
"""Names of what an export, or its adapters, consist of."""


def native_name(dialect: Dialect) -> str:
    """File name that MiniMind's own tools look for: `dpo_512.pth`, `dpo_640_moe.pth`."""
    if dialect.generation is None:
        raise CheckpointError("only a model that came from a native MiniMind file has such a name")
    return f"dpo_{dialect.fields['hidden_size']}{'_moe' if dialect.moe else ''}.pth"


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
    dialect: Dialect | None = None,
    end_ids: Sequence[int] | None = None,
) -> Path:
    """Write a Hugging Face folder: safetensors, configuration, tokenizer, chat template.

    `AutoModelForCausalLM` and `AutoTokenizer` load it without this project, except the `v_learn`
    architecture, which importing `minimind_dpo.models.load` makes known.

    Args:
        model: The model; it is left as it is.
        tokenizer: Written beside it.
        folder: The folder to write; an earlier export is replaced as a whole.
        dtype: Number format; None keeps the model's own, and so its exact logits.
        dialect: As loaded: what came in MiniMind's own form goes back in that form, which needs
            `trust_remote_code`. None writes transformers' form.
        end_ids: Tokens that generation is to stop at; None for the tokenizer's end of turn.

    Returns:
        The folder.

    Raises:
        CheckpointError: A weight is not finite in `dtype`, or `folder` is a file, or holds files
            that are no export's.
    """
    folder, dtype = Path(folder), dtype or model.dtype
    check_own_folder(folder)
    if dialect is not None and dialect.form is not None:
        state = to_native(model.state_dict(), dialect, dtype)
    else:
        state = {key: tensor.to(dtype) for key, tensor in model.state_dict().items()}
    check_finite(state, f"export to {folder}")
    with workspace(folder) as space, plain_attention(model):
        draft = space / folder.name
        draft.mkdir()
        if dialect is not None and dialect.form is not None:
            save_file(state, draft / "model.safetensors", metadata={"format": "pt"})
        else:
            _write_model(model, state, draft)
        _write_settings(model, tokenizer, draft, dtype, dialect, end_ids)
        replace(draft, folder)
    return folder


def rehearse_export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, dialect: Dialect
) -> None:
    """Write all of an export but its weights, for trial: before training, not after it.

    Args:
        model: With its adapters, if it has any. Its weights are not looked at, so one on the
            device `meta` does.
        tokenizer: As loaded.
        dialect: As loaded.

    Raises:
        CheckpointError: Configuration or tokenizer cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            _write_settings(model, tokenizer, Path(folder), model.dtype, dialect)
            for adapters in getattr(model, "peft_config", {}).values():
                adapters.save_pretrained(folder)
        except Exception as error:  # transformers and its tokenizers raise nearly anything here
            raise CheckpointError(
                f"the model could be trained but not exported, since its settings cannot be "
                f"written: {first_line(error)}. Correct its config.json, or its tokenizer's files"
            ) from error


def _write_settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    dtype: torch.dtype,
    dialect: Dialect | None,
    end_ids: Sequence[int] | None = None,
) -> None:
    """Everything but the weights."""
    form = None if dialect is None else dialect.form
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    with quiet():
        config.save_pretrained(folder)
    add_older_names(folder, config)
    fields = read_json(folder / "config.json") if form is None else dict(form.config)
    fields["torch_dtype" if "torch_dtype" in fields else "dtype"] = dtype_name(dtype)
    write_json(folder / "config.json", fields)
    for name, content in {} if form is None else form.code.items():
        (folder / name).write_bytes(content)
    # NOTE: its own way of saving refuses what other projects publish, such as a top_p that
    # do_sample=false leaves without effect.
    generation = _generation_config(model, tokenizer, end_ids)
    generation.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])


def _write_model(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Weights as transformers writes them, and the code of a model that came with its own."""
    generation, dtype = model.generation_config, model.config.dtype
    model.generation_config = GenerationConfig()  # the model's own is written by _write_settings
    try:
        with quiet():
            model.save_pretrained(folder, state_dict=state)
    finally:
        model.generation_config = generation
        model.config.dtype = dtype  # saving leaves a string there


def _generation_config(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    end_ids: Sequence[int] | None,
) -> GenerationConfig:
    """The model's own generation settings, stopping at the end of a turn as well."""
    settings = deepcopy(model.generation_config) or GenerationConfig()
    if tokenizer is None:
        return settings
    own_ends = settings.eos_token_id
    ends = list(own_ends) if isinstance(own_ends, list) else [own_ends]
    ends = [end for end in ends if end is not None]
    further = [end_of_turn_id(tokenizer)] if end_ids is None else end_ids
    ends += [end for end in further if end is not None and end not in ends]
    if ends:
        settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings


def check_own_folder(folder: Path) -> None:
    """Refuse a folder that holds what no export writes, since an export replaces it as a whole.

    Raises:
        CheckpointError: Names such a file; or `folder` is a file, or may not be written into.
    """
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; name a folder to export to")
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder} may not be written into; an export replaces it as a whole")
    others = [
        entry.name
        for entry in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if not any(fnmatch(entry.name, pattern) for pattern in _FILES)
    ]
    if others:
        raise CheckpointError(
            f"{folder} holds {', '.join(others[:3])}, which is no part of an exported model. An "
            "export replaces its folder as a whole: move your own files elsewhere"
        )
