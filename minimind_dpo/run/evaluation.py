"""From configuration and data to an `Evaluation`: prompts, text, reference, judges."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.batch import Message, TokenizedPair
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.read.pairs import read_pairs
from minimind_dpo.data.store.token_store import TokenStore
from minimind_dpo.evaluation.answers import Answer, Bar, Lend, Prompt
from minimind_dpo.evaluation.evaluate import Evaluation, Task
from minimind_dpo.evaluation.judges.accuracy import MOST_PAIRS, Pairs
from minimind_dpo.evaluation.judges.pairs import Ground
from minimind_dpo.evaluation.judges.votes import BallotBox
from minimind_dpo.evaluation.sampling import end_ids, room
from minimind_dpo.evaluation.scoring import BATCH_TOKENS
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.models.lora import adapters_off, has_adapters
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.build import load_reference
from minimind_dpo.run.judges import build_judges


def lending(model: PreTrainedModel) -> Lend:
    """A model that is always there."""
    return lambda: nullcontext(model)


def reference_of(config: Config, policy: PreTrainedModel) -> Lend:
    """The reference of a run: the policy without its adapters, or a model that is loaded when it
    is first needed, on the policy's device.
    """
    reference = config.reference
    if reference.path is None and has_adapters(policy):

        @contextlib.contextmanager
        def without_adapters() -> Iterator[PreTrainedModel]:
            with adapters_off(policy):
                yield policy

        return without_adapters

    @functools.cache
    def load() -> PreTrainedModel:
        model = load_reference(config).model
        torch.nn.Module.to(model, policy.device)
        return model

    return lambda: nullcontext(load())


def build_evaluation(
    config: Config,
    policy: LoadedModel,
    data: PreferenceDataModule,
    stores: tuple[TokenStore, TokenStore],
    bar: Bar,
    box: BallotBox,
) -> Evaluation | None:
    """What compares policies with the run's reference; None where no prompt is held out.

    Args:
        config: The configuration; `evaluate.prompts` asks for some.
        policy: As loaded, with its tokenizer.
        data: Set up.
        stores: What its rows for training and for validation are rows of.
        bar: Makes progress bars.
        box: What is voted on, where judges vote.

    Raises:
        ConfigError: A judge does not know the prompts, `evaluate.text` holds too little, or votes
            are on answers of another policy.
    """
    train_store, val_store = stores
    held_out = [val_store[row] for row in data.val_rows.tolist()]
    if not held_out:
        return None
    task = _task(config, policy, data, held_out)
    reference = reference_of(config, policy.model)
    options, most = config.evaluate, config.judge.fit_pairs
    random = np.random.default_rng(options.seed)
    fit = [train_store[row] for row in _some(data.train_rows, most, random)]
    test, shown = (_some_of(held_out, number, random) for number in (most, MOST_PAIRS))
    longest, texts = options.max_new_tokens, functools.partial(_as_texts, data, shown)
    ground = Ground(reference, fit, test, data.collate, task.batch_tokens, longest, bar)
    device = functools.partial(getattr, policy.model, "device")
    judges = build_judges(config, ground, task.prompts, box, device, texts)
    drawn = None if config.judge.votes is None else box.kept(task.prompts)
    return Evaluation(task, reference, *judges, options, bar, drawn)


def _task(
    config: Config, policy: LoadedModel, data: PreferenceDataModule, held_out: list[TokenizedPair]
) -> Task:
    chat, text = data.tokenizer.chat, config.evaluate.text
    prompts = _choose_prompts(config, policy, data, held_out)
    own = [prompt.ids for prompt in prompts if len(prompt.ids) > 1]
    return Task(
        prompts=prompts,
        pairs=held_out,
        texts=own if text is None else read_text(config, chat.tokenizer),
        text="prompts" if text is None else Path(text).name,
        end_ids=end_ids(policy.model, chat),
        decode=chat.decode,
        collate=data.collate,
        batch_tokens=config.reference.batch_tokens or BATCH_TOKENS,
    )


def read_text(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """`evaluate.text` as tokens: stretches of `data.max_length`, as many as prompts at most.

    Raises:
        ConfigError: It is no text, or has fewer than two tokens.
    """
    assert config.evaluate.text is not None
    try:
        text = Path(config.evaluate.text).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        why = f"is not UTF-8 text ({error.reason} at byte {error.start})"
        raise ConfigError([Problem("evaluate.text", why, value=config.evaluate.text)]) from error
    ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
    length = config.data.max_length
    starts = range(0, len(ids), length)[: config.evaluate.prompts]
    stretches = [ids[start : start + length] for start in starts]
    if not stretches or len(stretches[0]) < 2:
        raise ConfigError([Problem("evaluate.text", "holds no text", value=config.evaluate.text)])
    return [stretch for stretch in stretches if len(stretch) > 1]


def _choose_prompts(
    config: Config, policy: LoadedModel, data: PreferenceDataModule, held_out: list[TokenizedPair]
) -> list[Prompt]:
    """Distinct held-out prompts, drawn by `evaluate.seed`, the longest first as memory needs.

    Each is cut from the left to what the model has positions for beside an answer.
    """
    options = config.evaluate
    assert options.prompts is not None
    _, longest = room(policy.model, options.max_new_tokens)
    distinct = list({pair.prompt_ids.tobytes(): pair for pair in reversed(held_out)}.values())
    chosen = _some_of(distinct, options.prompts, np.random.default_rng(options.seed))
    chosen.sort(key=lambda pair: -len(pair.prompt_ids))
    turns = _read_turns(data, {pair.source for pair in chosen})
    return [Prompt(pair.prompt_ids[-longest:], turns[pair.source], pair.source) for pair in chosen]


def _as_texts(data: PreferenceDataModule, pairs: Sequence[TokenizedPair]) -> Pairs:
    """Pairs as judges read them who do not read tokens."""
    turns = _read_turns(data, {pair.source for pair in pairs})
    decode = data.tokenizer.chat.decode
    chosen, rejected = (
        [Answer(decode(ids.tolist()), ids, ended=True) for ids in side]
        for side in ([p.chosen_ids for p in pairs], [p.rejected_ids for p in pairs])
    )
    prompts = [Prompt(pair.prompt_ids, turns[pair.source], pair.source) for pair in pairs]
    return Pairs(prompts, chosen, rejected)


def _read_turns(
    data: PreferenceDataModule, sources: set[str]
) -> dict[str, tuple[Message, ...] | str]:
    """The prompts at these places of the files that are held out, as they were written."""
    found: dict[str, Any] = {}
    files, columns = data.options.val or data.options.train, data.options.columns.named()
    for pair in read_pairs(files, columns=columns, on_problem=lambda problem: None):
        if pair.source in sources:
            found[pair.source] = pair.prompt
            if len(found) == len(sources):
                break
    return found


def _some(rows: np.ndarray, most: int, random: np.random.Generator) -> list[int]:
    """At most so many of some rows, each with the same chance, in their order."""
    chosen = rows if len(rows) <= most else random.choice(rows, most, replace=False)
    return sorted(chosen.tolist())


def _some_of(
    pairs: Sequence[TokenizedPair], most: int, random: np.random.Generator
) -> list[TokenizedPair]:
    """The same of pairs."""
    return [pairs[place] for place in _some(np.arange(len(pairs)), most, random)]
