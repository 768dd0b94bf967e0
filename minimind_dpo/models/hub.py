"""Models in transformers' own form: a folder, or a name on a hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from minimind_dpo.models.dialects import CheckpointError, Dialect
from minimind_dpo.models.files import check_finite

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def load_hub_model(
    source: Path | str,
    config: PreTrainedConfig,
    overrides: dict[str, Any],
    dtype: torch.dtype,
    dropout: float,
    trust_remote_code: bool,
) -> tuple[PreTrainedModel, Dialect]:
    """Load a Hugging Face folder or hub name, strictly.

    Args:
        source: Folder or hub name.
        config: As `read_config` gave it; it is changed.
        overrides: Fields of its configuration to change.
        dtype: Number format to load into.
        dropout: Probability for every dropout of the configuration.
        trust_remote_code: Let it run the Python code that comes with it.

    Raises:
        CheckpointError: It cannot be fetched, lacks weights or holds others.
    """
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else None
    _override(config, overrides, str(source))
    _set_dropout(config, dropout)
    try:
        with no_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                weights_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # files, network, shapes and remote code all fail in their own way
        raise CheckpointError(
            f"model.path={source} cannot be loaded: {error}. Check the weights and the overrides "
            "under model.config"
        ) from error
    model, report = loaded
    _check_report(report, str(source))
    check_finite(model.state_dict(), str(source))
    file_dtype = _stored_dtype(source) if isinstance(source, Path) else None
    return model, Dialect(
        name="hf",
        class_name=type(model).__name__,
        num_parameters=model.num_parameters(),
        file_dtype=file_dtype or stored,
    )


def _check_folder(folder: Path) -> None:
    if (folder / "config.json").is_file():
        return
    native = sorted(path.name for path in folder.glob("*.pt*"))
    hint = (
        f"It holds {', '.join(native[:5])}; give model.path one of these files"
        if native
        else "Give model.path a native file, or a folder that save_pretrained wrote"
    )
    raise CheckpointError(f"model.path={folder} has no config.json. {hint}")


def read_config(source: Path | str, trust_remote_code: bool) -> PreTrainedConfig:
    """Configuration of a Hugging Face folder or hub name.

    Raises:
        CheckpointError: It is no such folder, cannot be fetched, needs code of its own, or is not
            a decoder-only model.
    """
    if isinstance(source, Path):
        _check_folder(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # a missing name, the network, JSON, code that is not trusted
        where = (
            "" if isinstance(source, Path) else ": no such local path, and the hub gave no model"
        )
        raise CheckpointError(
            f"model.path={source}{where}: {error}. Models with code of their own need "
            "model.trust_remote_code=true"
        ) from error
    if config.is_encoder_decoder:
        raise CheckpointError(
            f"model.path={source} is an encoder-decoder ({config.model_type}); only decoder-only "
            "models are supported"
        )
    return config


def _override(config: PreTrainedConfig, overrides: dict[str, Any], where: str) -> None:
    known = {name for name in config.to_dict() if not name.startswith("_")}
    known |= set(config.attribute_map)
    rope: Any = getattr(config, "rope_parameters", None) or {}
    for name, value in overrides.items():
        if name == "rope_theta" and "rope_theta" in rope:
            rope["rope_theta"] = value
        elif name in known:
            try:
                setattr(config, name, value)
            except Exception as error:  # transformers checks kinds with a type of its own
                raise CheckpointError(f"{where}: model.config.{name}={value!r}: {error}") from error
        else:
            raise CheckpointError(
                f"{where}: {type(config).__name__} has no field model.config.{name}. "
                f"Known ones: {', '.join(sorted(known))}"
            )


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
        f"{len(report[kind])} {what}: {', '.join(sorted(map(str, report[kind]))[:5])}"
        for kind, what in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "left over"),
            ("mismatched_keys", "of another shape"),
        )
        if report.get(kind)
    ]
    if problems:
        raise CheckpointError(
            f"{where}: keys {'; '.join(problems)}. The weights do not belong to this config.json"
        )


def _stored_dtype(folder: Path) -> torch.dtype | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = [file.get_slice(key).get_dtype() for key in file.keys()]  # noqa: SIM118
        if kinds:
            return _SAFETENSORS_DTYPES.get(max(set(kinds), key=kinds.count))
    return None


@contextlib.contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers' weight bar out of a log that has one of its own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
