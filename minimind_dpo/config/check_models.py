"""Whether model, tokenizer, adapters and reference are whole and fit each other.

Models are loaded as the run loads them, by the same functions, but onto the device `meta`: keys,
shapes, checksums and numbers are looked at, and no weight is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.data.tokenize.special_tokens import RenderError
from minimind_dpo.evaluation.judges.check import judge_trials
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import check_own_folder, rehearse_export
from minimind_dpo.models.load import load_configured
from minimind_dpo.models.locate import ADAPTERS, EXPORT
from minimind_dpo.models.lora import add_adapters
from minimind_dpo.models.tokenizers import need_tokenizer
from minimind_dpo.options.problem import ConfigError, Problem


def checkpoint_problems(config: Config, known: set[str]) -> list[Problem]:
    """What the run would find wrong when it loads its models.

    Args:
        config: The configuration.
        known: Keys with problems of their own, which are not looked into again.
    """
    # One that cannot be found is met by all that look for it, and told once.
    return list({str(problem): problem for problem in _problems(config, known)}.values())


def _problems(config: Config, known: set[str]) -> Iterator[Problem]:
    model, reference = config.model, config.reference
    tokenizer: PreTrainedTokenizerBase | Literal[False] = False
    if not known & {"model.path", "model.tokenizer"}:
        try:
            tokenizer = need_tokenizer(model.path, model.tokenizer, model.trust_remote_code)
        except CheckpointError as error:
            yield _problem("model.tokenizer", error)
        else:
            yield from _chat_problems(config, tokenizer)
    if not any(key.startswith("model.") and key != "model.tokenizer" for key in known):
        try:
            _check_policy(config, tokenizer)
        except CheckpointError as error:
            yield _problem("model.path", error)
    if reference.path is not None and reference.mode != "none" and "reference.path" not in known:
        try:
            load_configured(model, tokenizer, reference=reference.path, device="meta")
        except CheckpointError as error:
            yield _problem("reference.path", error)
    if not any(key.startswith("judge.") for key in known):
        yield from judge_trials(config.judge)
    if config.run_dir is not None and "run_dir" not in known:
        yield from _folder_problems(config.run_dir)


def _chat_problems(config: Config, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
    """Of the chat template, and of prompts that are to be answered with it."""
    try:
        chat = Chat(tokenizer, config.data)
    except ConfigError as error:
        yield from error.problems
        return
    samples = config.callbacks.samples
    for text in (samples.prompts or []) if samples.enabled else []:
        try:
            chat.render_prompt(chat.question(text))
        except RenderError as error:
            yield Problem("callbacks.samples.prompts", str(error), value=text)
    if config.callbacks.judge == "demo" and not chat.has_template:
        why = "asks the demo's questions, for which there is no chat template"
        yield Problem("callbacks.judge", why, "Set callbacks.judge=none.", "demo")


def _check_policy(config: Config, tokenizer: PreTrainedTokenizerBase | Literal[False]) -> None:
    loaded = load_configured(config.model, tokenizer, device="meta")
    if config.model.lora.r:
        add_adapters(loaded.model, config.model.lora)
    if config.export.hf or config.model.lora.r:
        rehearse_export(loaded.model, tokenizer or None, loaded.dialect)


def _folder_problems(run_dir: str) -> Iterator[Problem]:
    """Of what a run writes as a whole, where other files are."""
    for name in (EXPORT, ADAPTERS):
        try:
            check_own_folder(Path(run_dir).expanduser() / name)
        except CheckpointError as error:
            yield Problem("run_dir", str(error).rstrip("."))


def _problem(key: str, error: CheckpointError) -> Problem:
    """A problem under the key that the message begins with, else under `key`."""
    text = str(error).rstrip(".")
    named = re.match(r"(?:model|reference)\.[a-z_]+(?:\.[a-z_]+)*", text)
    return Problem(named.group() if named else key, text)
