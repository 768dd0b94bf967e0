"""Models in transformers' own form: a folder, or a name on a hub."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from minimind_dpo.models.errors import CheckpointError, reason
from minimind_dpo.models.minimind.native_file import check_finite, main_dtype
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.models.weight_files import stored_tensors, weight_files

Device = Literal["cpu", "meta"]
"""Where a model is built; on `meta` it has shapes and no weights."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; the meaning of each is `load_model`'s."""

    dtype: torch.dtype
    dropout: float
    trust_remote_code: bool
    device: Device
    key: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise CheckpointError(f"model.dropout={self.dropout} must be at least 0 and below 1")
        if not self.dtype.is_floating_point:
            raise CheckpointError(f"dtype={self.dtype} must be a floating point type")


_ADVICE: Final = ". Check its files, and the overrides under model.config"
_COUNTS: Final = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_labels")
_MOST: Final = 10_000
_SMALL: Final = 10**8
"""Numbers of a model that fits into any memory, so that its shapes may be compared one by one."""


def read_config(
    source: Path | str, overrides: Mapping[str, Any], options: LoadOptions
) -> PreTrainedConfig:
    """The configuration of a folder or hub name, with overridden fields.

    Raises:
        CheckpointError: It needs code of its own, is no decoder-only model's, has values that
            transformers refuses, or asks for many more numbers than the folder's weights have.
    """
    where = f"{options.key}={source}"
    _check_counts(overrides, f"{where}: model.config.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=options.trust_remote_code)
    except Exception as error:  # code that is not trusted, fields of the wrong kind
        raise CheckpointError(f"{where}: {reason(error, _ADVICE)}") from error
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"{where} is an encoder-decoder ({config.model_type}); only decoder-only models are "
            "supported"
        )
    _override(config, overrides, str(source))
    _check_rope(config, where)
    _set_aside_habits(config)
    _set_dropout(config, options.dropout)
    if isinstance(source, Path) and not options.trust_remote_code:
        _check_size(config, source, where)
    return config


def _check_size(config: PreTrainedConfig, folder: Path, where: str) -> None:
    """Refuse what would fill the memory before its weights are found to be of other shapes."""
    stored = sum(path.stat().st_size for path in weight_files(folder) if os.path.isfile(path))
    try:
        with quiet(), no_init_weights(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(deepcopy(config))
        numbers = sum(x.numel() for x in (*model.parameters(), *model.buffers()))
    except Exception as error:  # classes without such a model, sizes beyond 64 bits
        raise CheckpointError(f"{where} cannot be loaded: {reason(error, _ADVICE)}") from error
    if numbers > max(stored, _SMALL):
        raise CheckpointError(
            f"{where}: its config.json, with the overrides under model.config, asks for "
            f"{numbers:,} numbers, and the files of its weights have {stored:,} bytes"
        )


def load_hub_model(
    source: Path | str, config: PreTrainedConfig, options: LoadOptions
) -> tuple[PreTrainedModel, Dialect]:
    """Load a folder or hub name, strictly, by what `read_config` gave.

    Raises:
        CheckpointError: It cannot be fetched, or lacks weights or holds others.
    """
    config_dtype = config.dtype if isinstance(config.dtype, torch.dtype) else None
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=options.dtype,
                trust_remote_code=options.trust_remote_code,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, which refuses them
                # Left out otherwise: any other device makes transformers wrap the model.
                **({"device_map": "meta"} if options.device == "meta" else {}),
            )
    except Exception as error:  # files, network, shapes and remote code all fail in their own way
        what = f"{options.key}={source} cannot be loaded"
        raise CheckpointError(f"{what}: {reason(error, _ADVICE)}") from error
    model, report = loaded
    _check_report(report, str(source))
    _check_finite(model, source)
    parts = _safetensors(source)[:1] if isinstance(source, Path) else []
    file_dtype = main_dtype(tensor for path in parts for _, tensor in stored_tensors(path))
    return model, Dialect(
        name="hf",
        class_name=type(model).__name__,
        num_parameters=model.num_parameters(),
        file_dtype=file_dtype or config_dtype,
    )


def _check_folder(folder: Path, key: str) -> None:
    if (folder / "config.json").is_file():
        return
    native = sorted(path.name for path in folder.glob("*.pt*"))
    hint = (
        f"It holds {', '.join(native[:5])}; give {key} one of these files"
        if native
        else f"Give {key} a native file, or a folder that save_pretrained wrote"
    )
    raise CheckpointError(f"{key}={folder} has no config.json. {hint}")


def read_settings(source: Path | str, key: str = "model.path") -> dict[str, Any]:
    """Content of `config.json`, as data.

    Raises:
        CheckpointError: It is missing, cannot be fetched or is damaged.
    """
    where, unknown = f"{key}={source}", ""
    if isinstance(source, Path):
        _check_folder(source, key)
    else:
        unknown = ": no such local path, and the hub gave no model"
    try:
        with quiet():
            settings, _ = PreTrainedConfig.get_config_dict(source)
    except Exception as error:  # a missing name, the network, JSON
        raise CheckpointError(f"{where}{unknown}: {reason(error, _ADVICE)}") from error
    if not isinstance(settings, dict):  # JSON of another kind
        raise CheckpointError(f"{where}: config.json holds no settings")
    text: Any = settings.get("text_config")
    for part in (settings, text if isinstance(text, Mapping) else {}):
        _check_counts(part, f"{where}: config.json has ")
    return dict(settings)


def _check_counts(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a number of layers or labels that alone would fill the memory."""
    for name in _COUNTS:
        value = settings.get(name)
        if isinstance(value, int | float) and value > _MOST:
            raise CheckpointError(f"{where}{name}={value}, and no model has so many")


def _override(config: PreTrainedConfig, overrides: Mapping[str, Any], where: str) -> None:
    names = {name for name in config.to_dict() if not name.startswith("_")}
    names |= set(config.attribute_map)
    rope: Any = getattr(config, "rope_parameters", None) or {}
    for name, value in overrides.items():
        if name == "rope_theta" and "rope_theta" in rope:
            rope["rope_theta"] = value
        elif name in names:
            try:
                setattr(config, name, value)
            except Exception as error:  # transformers checks kinds with a type of its own
                asked = f"model.config.{name}={value!r:.60}"
                raise CheckpointError(f"{where}: {asked}: {reason(error)}") from error
        else:
            raise CheckpointError(
                f"{where}: {type(config).__name__} has no field model.config.{name}. "
                f"Known ones: {', '.join(sorted(names))}"
            )


def _check_rope(config: PreTrainedConfig, where: str) -> None:
    """Refuse factors of RoPE that are no numbers, which transformers finds in the first step."""
    rope: Any = getattr(config, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):  # some models have one for each kind of layer
        for name, value in part.items() if isinstance(part, Mapping) else ():
            if name.endswith("factor") and isinstance(value, str):
                field = f"rope_parameters.{name}={value!r:.60}"
                raise CheckpointError(f"{where}: config.json has {field}, which is no number")


def _set_aside_habits(config: PreTrainedConfig) -> None:
    """Undo what a configuration asks of whoever runs the model: forms of its output, kernels."""
    config.return_dict = True
    config.output_attentions = False
    config.output_hidden_states = False
    config._attn_implementation = None


def _set_dropout(config: PreTrainedConfig, dropout: float) -> None:
    for name, value in vars(config).items():
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        if numeric and ("dropout" in name or name.endswith("_pdrop")):
            setattr(config, name, dropout)
        elif numeric and "layerdrop" in name:
            # Skipping whole layers is no dropout of activations; it has no place here.
            setattr(config, name, 0.0)


def _check_report(report: dict[str, Any], where: str) -> None:
    problems = [
        f"{len(report[kind])} {what}: {', '.join(sorted(map(_spelt, report[kind]))[:5])}"
        for kind, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "left over"),
            ("mismatched_keys", "of another shape"),
        )
        if report.get(kind)
    ]
    if problems:
        raise CheckpointError(
            f"{where}: keys {'; '.join(problems)}. The weights do not belong to this config.json "
            "with the overrides under model.config"
        )


def _spelt(entry: Any) -> str:
    """A key of transformers' loading report, or a key with two shapes."""
    if isinstance(entry, str):
        return entry
    key, shape, expected = entry
    return f"{key} {tuple(shape)} where {tuple(expected)} is expected"


def _check_finite(model: PreTrainedModel, source: Path | str) -> None:
    """As loaded; where the model has no weights, tensor by tensor in the folder's own files."""
    if model.device.type != "meta":
        check_finite(model.state_dict(), str(source))
        return
    for path in _safetensors(source) if isinstance(source, Path) else ():
        for key, tensor in stored_tensors(path):
            check_finite({key: tensor}, str(path))


def _safetensors(folder: Path) -> list[Path]:
    return [path for path in weight_files(folder) if path.suffix == ".safetensors"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own bars and reports out of a log that tells the same in its own words."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
