"""What others load of a model: left by a run when it ends, or written by the command `export`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.special_tokens import RenderError
from minimind_dpo.disk import write_text
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import check_own_folder, native_name, save_hf, save_native
from minimind_dpo.models.gguf.file import save_gguf
from minimind_dpo.models.gguf.modelfile import modelfile
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.locate import ADAPTERS, EXPORT
from minimind_dpo.models.lora import has_adapters, save_and_merge_adapters
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.models.weight_files import weight_files
from minimind_dpo.options.problem import ConfigError, Problem, package_problems
from minimind_dpo.run.model_card import model_card
from minimind_dpo.run.policy import load_policy

log = logging.getLogger(__name__)

_CONTEXT: Final = 4096
"""Most tokens of a conversation in a Modelfile: memory grows with them."""


def export_weights(config: Config, policy: LoadedModel, chat: Chat, run_dir: Path) -> list[str]:
    """Write what was asked for; the model is a plain one after it.

    Its tokenizer has the chat template that the run trained with, and it stops where that ends.

    Returns:
        The files by which to see later that the export is there and whole.
    """
    folder = run_dir / EXPORT
    files: list[Path] = []
    if has_adapters(policy.model):
        save_and_merge_adapters(policy.model, chat.tokenizer, run_dir / ADAPTERS, policy.home)
    if config.export.hf:
        _save_hf(policy, chat, folder)
        files += [folder / "config.json", *weight_files(folder)]
    if config.export.native and policy.dialect.generation is not None:
        native = save_native(policy.model, policy.dialect, folder / native_name(policy.dialect))
        files.append(native)
    return [path.relative_to(run_dir).as_posix() for path in files]


def write_model_card(
    config: Config, policy: LoadedModel, summary: Mapping[str, Any], run_dir: Path
) -> None:
    """Put the model card beside the weights, once the numbers are known."""
    if summary["exported"]:
        write_text(run_dir / EXPORT / "README.md", model_card(config, policy, summary))


def export_model(
    config: Config, run: Path | None, formats: Sequence[str], to: str | None, dtype: str
) -> list[Path]:
    """Write a model in some forms, and say where they are.

    Args:
        config: Of the run, or with `model.path`.
        run: A run's folder, whose policy is written; None writes `model.path`.
        formats: Of `hf`, `native` and `gguf`.
        to: The folder; None for the run's own `export`, which has some of them already.
        dtype: Type of the weights, or `auto`.

    Returns:
        The folders and files.

    Raises:
        ConfigError, CheckpointError: What cannot be written, before anything is.
    """
    if "gguf" in formats and (missing := list(package_problems("format", *["gguf"] * 3))):
        raise ConfigError(missing)
    folder = _folder(run, to)
    check_own_folder(folder)
    policy, chat = load_policy(config, run)
    native = _native_dialect(config, run, policy) if "native" in formats else None
    as_left = run is not None and folder == run / EXPORT and dtype == "auto"
    as_left = as_left and config.data.chat_template in ("auto", "none")
    number = None if dtype == "auto" else getattr(torch, dtype)
    half = number or torch.float16
    written: list[Path] = []
    if "hf" in formats:
        there = as_left and (folder / "config.json").is_file()
        if not there:
            _save_hf(policy, chat, folder, number)
        written.append(_told(folder, "Hugging Face folder", there))
    if native is not None:
        path = folder / native_name(native)
        there = as_left and path.is_file()
        if not there:
            save_native(policy.model, native, path, half)
        written.append(_told(path, "MiniMind's own file", there))
    if "gguf" in formats:
        written.append(_write_gguf(policy, chat, folder, half, _name(config, run)))
    return written


def _save_hf(
    policy: LoadedModel, chat: Chat, folder: Path, dtype: torch.dtype | None = None
) -> None:
    """A folder that stops an answer where the chat template ends one."""
    dialect, ends = policy.dialect, chat.end_ids
    save_hf(policy.model, chat.tokenizer, folder, dtype, dialect=dialect, end_ids=ends)


def _folder(run: Path | None, to: str | None) -> Path:
    if to is not None:
        return Path(to).expanduser()
    if run is None:
        why = "is missing: it names the folder to write model.path to"
        raise ConfigError([Problem("to", why, "For example: to=exported")])
    return run / EXPORT


def _native_dialect(config: Config, run: Path | None, policy: LoadedModel) -> Dialect:
    """What writing MiniMind's own file needs: of a run, that of the file it began from.

    Raises:
        CheckpointError: There is none.
    """
    dialect = policy.dialect
    if dialect.generation is None and run is not None:
        begun = load_model(config.model.path, False, config.model.config, device="meta")
        dialect = begun.dialect
    if dialect.generation is None:
        raise CheckpointError(
            f"format=native: {config.model.path} is no file of MiniMind's own, and so there is no "
            "form of its own to go back to. Use format=hf or gguf"
        )
    return dialect


def _write_gguf(
    policy: LoadedModel, chat: Chat, folder: Path, dtype: torch.dtype, name: str
) -> Path:
    short = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    path = folder / f"{name}-{short}.gguf"
    save_gguf(policy.model, chat.tokenizer, path, dtype=dtype, end_ids=chat.end_ids, name=name)
    _told(path, "GGUF for llama.cpp, read back with equal tensors", there=False)

    def render(turns: list[dict[str, str]]) -> str:
        try:
            return chat.decode(chat.encode_prompt(turns), special=True)
        except RenderError as error:
            raise ValueError(str(error)) from error

    positions: Any = getattr(policy.model.config, "max_position_embeddings", _CONTEXT)
    text = modelfile(
        path.name,
        render if chat.has_template else None,
        [chat.decode([end], special=True) for end in chat.end_ids],
        min(_CONTEXT, positions),
    )
    write_text(folder / "Modelfile", text)
    if "TEMPLATE" not in text:
        log.warning(
            "Modelfile: the chat template cannot be said in ollama's form; write its TEMPLATE "
            "yourself (https://docs.ollama.com/modelfile)"
        )
    log.info(f"  ollama create {name.lower()} -f {folder / 'Modelfile'}")
    log.info(f"  ollama run {name.lower()}")
    return path


def _name(config: Config, run: Path | None) -> str:
    """Of the model, good for a file and for ollama."""
    name = config.name if run is not None else Path(config.model.path).stem
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII).strip("-.") or "model"


def _told(path: Path, what: str, there: bool) -> Path:
    log.info(f"{path}: {what}{', there already' if there else ''}")
    return path
