"""A Hugging Face folder in MiniMind's own form: `model_type: minimind`, with the code beside it.

Its keys are those of the native file, so it is read as one: `config.json` as data, the weights as
tensors. The code in the folder is not run; it is copied, so that an export has the same form.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedConfig

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.minimind.architecture import known_fields
from minimind_dpo.models.minimind.generations import Generation
from minimind_dpo.models.minimind.native_file import check_tensors, read_tensors
from minimind_dpo.models.weight_files import stored_tensors, weight_files

MODEL_TYPE: Final = "minimind"
_FILES: Final = ("*.json", "*.safetensors", "*.bin", "*.py", "*.jinja")
_ONE_VALUE: Final = {
    "hidden_act": "silu",
    "scoring_func": "softmax",
    "inference_rope_scaling": False,
    "rope_scaling": None,
}
"""Fields that change what the model computes, and the one value that is read here."""
_WITHOUT_EFFECT: Final = {"dropout", "flash_attn", "multiple_of", "aux_loss_alpha", "seq_aux"}
_OF_TRANSFORMERS: Final = {
    *("torch_dtype", "auto_map", "return_dict", "use_cache", "rope_parameters"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
}


@dataclass(frozen=True, slots=True)
class FolderForm:
    """What makes a folder out of a native file's tensors, as it came.

    Attributes:
        config: Content of `config.json`.
        code: Content of the folder's own Python files, by name.
    """

    config: Mapping[str, Any] = field(repr=False)
    code: Mapping[str, bytes] = field(repr=False)


def is_minimind(source: Path | str) -> bool:
    """Whether a folder, or what a hub has under a name, is in MiniMind's own form."""
    try:
        settings, _ = PreTrainedConfig.get_config_dict(source)
    except Exception:  # a missing file, the network, JSON: whoever loads it says so
        return False
    return settings.get("model_type") == MODEL_TYPE


def fetch_folder(source: Path | str, key: str) -> Path:
    """The folder itself, or a copy of what a hub has under a name."""
    if isinstance(source, Path):
        return source
    try:
        return Path(snapshot_download(source, allow_patterns=list(_FILES)))
    except Exception as error:  # the network, a name that is gone, a full disk
        raise CheckpointError(f"{key}={source} cannot be fetched: {error}") from error


def read_folder(
    folder: Path, config: Mapping[str, Any], key: str
) -> tuple[dict[str, Tensor], FolderForm]:
    """The tensors and the form of a folder, with the content of its `config.json`.

    Raises:
        CheckpointError: Weights are missing or damaged, or `config.json` asks for what no MiniMind
            generation computes.
    """
    for name, value in _ONE_VALUE.items():
        if config.get(name, value) not in (value, None):
            raise CheckpointError(
                f"{key}={folder}: config.json has {name}={config[name]!r}, and only {value!r} is "
                "supported for a folder of MiniMind's own form"
            )
    files = weight_files(folder)
    if not files:
        raise CheckpointError(
            f"{key}={folder} has a config.json, but neither model.safetensors nor pytorch_model.bin"
        )
    state: dict[str, Tensor] = {}
    for path in files:
        if not os.path.isfile(path):  # which takes a name that is too long
            raise CheckpointError(
                f"{key}={folder}: {path.name:.100} is missing, which its index names"
            )
        tensors = dict(stored_tensors(path)) if path.suffix == ".safetensors" else None
        state |= read_tensors(path) if tensors is None else check_tensors(tensors, path)
    code = {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}
    return state, FolderForm(dict(config), code)


def fields_of_config(config: Mapping[str, Any], generation: Generation) -> dict[str, Any]:
    """Fields of the architecture that `config.json` states, by the generation's own names."""
    rope: Any = config.get("rope_parameters")
    values = {**(rope if isinstance(rope, Mapping) else {}), **config}
    fields = {name: value for name, value in values.items() if name in _known(generation)}
    if isinstance(fields.get("n_shared_experts"), bool):
        fields["n_shared_experts"] = int(fields["n_shared_experts"])
    return fields


def fields_without_use(config: Mapping[str, Any], generation: Generation) -> list[str]:
    """Fields of `config.json` that are neither of this generation's nor of every model's."""
    with_use = {*_ONE_VALUE, *_WITHOUT_EFFECT, *_OF_TRANSFORMERS, *_known(generation)}
    return sorted(set(config) - with_use - set(PreTrainedConfig().to_dict()))


def _known(generation: Generation) -> set[str]:
    return set(known_fields(generation)) - {"generation"}


def generation_by_fields(config: Mapping[str, Any]) -> str | None:
    """`v2a` or `v1`, which have the same keys; only v2a can state its rotary base."""
    if "n_layers" not in config:
        return None
    return "v2a" if "rope_theta" in config else "v1"


def with_overrides(
    form: FolderForm, generation: Generation, overrides: Mapping[str, Any]
) -> FolderForm:
    """The form with the user's overrides in its `config.json`, under the names it uses."""
    spelling = {name: own for own, name in generation.aliases.items()}
    config = dict(form.config)
    for name, value in overrides.items():
        if value is not None and name != "generation":
            config[spelling.get(name, name)] = value
    return FolderForm(config, form.code)
