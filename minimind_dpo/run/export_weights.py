"""What a finished run leaves for others to load: `export/`, and `adapters/` where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.disk import write_text
from minimind_dpo.models.export import native_name, save_hf, save_native
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.models.locate import ADAPTERS, EXPORT
from minimind_dpo.models.lora import has_adapters, save_and_merge_adapters
from minimind_dpo.models.weight_files import weight_files
from minimind_dpo.run.model_card import model_card


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
        dialect, ends = policy.dialect, chat.end_ids
        save_hf(policy.model, chat.tokenizer, folder, dialect=dialect, end_ids=ends)
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
