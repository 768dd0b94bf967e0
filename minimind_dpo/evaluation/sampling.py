"""Sampled answers, without disturbing the training they are taken from.

Prompts of a batch are padded on the left, so that every answer starts at the same column, and the
mask hides the padding. What they all begin with, a system prompt, runs once. Afterwards the random
number generators, the train or evaluation mode of every module and the attention function are what
they were before.

A token is drawn as the argmax of p / e, e exponential, one e for each row, step and word. So with
one seed and the same batches, two models that are alike draw the same answers, and two that are
close draw mostly the same: comparing them, chance in the draws cancels out.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.evaluation.answers import Answer
from minimind_dpo.evaluation.scoring import frozen
from minimind_dpo.models.attention.planned import plain_attention

FEWEST_SHARED: Final = 32
"""Tokens from which a prefix that all prompts of a batch share runs once for all of them."""


def sample_answers(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> list[str]:
    """One answer to each prompt.

    Args:
        model: The model, on its device.
        chat: Says what ends an answer, and turns it into text.
        prompts: Token ids of each prompt, as `Chat.encode_prompt` gives them.
        max_new_tokens: Longest answer.
        temperature: Of sampling; 0 always takes the most probable token.
        top_p: Sample from the most probable tokens that make up this share.
        seed: Of sampling; the same seed and batch size give the same answers.
        batch_size: Prompts at once.

    Returns:
        The answers without special tokens.

    Raises:
        ValueError: A setting out of range, or an empty prompt.
    """
    answers = sample_completions(
        model,
        prompts,
        end_ids=end_ids(model, chat),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        batch_size=batch_size,
    )
    return [chat.decode(answer) for answer in answers]


def end_ids(model: PreTrainedModel, chat: Chat) -> list[int]:
    """Tokens that end an answer: the end of a turn, of a text, and what the model itself names."""
    own = getattr(model.generation_config, "eos_token_id", None)
    return sorted(
        {*chat.end_ids, *(own if isinstance(own, list) else [] if own is None else [own])}
    )


def draw_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    *,
    end_ids: Sequence[int],
    **settings: Any,
) -> list[Answer]:
    """One answer to each prompt, with its tokens.

    Args:
        model: As `sample_completions`.
        prompts: As `sample_completions`.
        decode: Token ids to text without special tokens.
        end_ids: As `sample_completions`.
        settings: The other keywords of `sample_completions`.
    """
    drawn = sample_completions(model, prompts, end_ids=end_ids, **settings)
    ends = set(end_ids)
    return [Answer(decode(ids), np.array(ids, np.int32), ids[-1] in ends) for ids in drawn]


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    seed_each_batch: bool = True,
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda count: None,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """One completion to each prompt, as token ids.

    Prompt and completion fit the model's positions, beyond which those that are learned end: a
    completion gets at most half of them, and a prompt is cut from the left to what remains.

    Args:
        model: The model, on its device.
        prompts: Token ids of each prompt.
        end_ids: Tokens that end a completion.
        max_new_tokens: Longest completion.
        temperature: As in `sample_answers`.
        top_p: As in `sample_answers`.
        seed: As in `sample_answers`.
        seed_each_batch: By the seed and its first prompt's number; else the draws go on.
        batch_size: Prompts at once.
        advance: Called with the number of prompts that are answered, batch by batch.
        streamer: Gets each token of the one completion as it is drawn, after the prompt.

    Returns:
        Ids of each completion; the last one is an end token unless the completion was cut.

    Raises:
        ValueError: A setting out of range, or an empty prompt.
    """
    _check(prompts, max_new_tokens, temperature, top_p, batch_size)
    _check_ids(model, prompts)
    max_new_tokens, longest = room(model, max_new_tokens)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        **_drawing(temperature, top_p),
        # NOTE: what is left unset here would be taken from the model's own generation settings.
        repetition_penalty=1.0,
        eos_token_id=list(end_ids) or None,
        pad_token_id=0,
        use_cache=True,
    )
    completions: list[list[int]] = []
    with _undisturbed(model):
        for start in range(0, len(prompts), batch_size):
            if seed_each_batch or not start:
                torch.manual_seed(seed + start)
            batch = [prompt[-longest:] for prompt in prompts[start : start + batch_size]]
            completions += _one_batch(model, batch, settings, streamer)
            advance(len(completions) - start)
    return completions


def _drawing(temperature: float, top_p: float) -> dict[str, Any]:
    """Settings of sampling; none for greedy search, or transformers warns of what it ignores."""
    if temperature == 0:
        return dict.fromkeys(("temperature", "top_p", "top_k"))
    return {"temperature": temperature, "top_p": top_p, "top_k": 0}


def room(model: PreTrainedModel, max_new_tokens: int) -> tuple[int, int]:
    """Most tokens of a completion and of a prompt, where the model's positions end.

    Args:
        model: The model.
        max_new_tokens: Longest completion that is asked for.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    max_new_tokens = min(max_new_tokens, max(1, positions // 2))
    return max_new_tokens, max(1, positions - max_new_tokens)


def _check(
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be 1 or more"
        )
    if not 0.0 <= temperature < float("inf") or not 0.0 < top_p <= 1.0:
        raise ValueError(
            f"temperature={temperature} must be 0 or more and top_p={top_p} above 0 and at most 1"
        )
    empty = [str(index) for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(
            f"prompt(s) {', '.join(empty[:5])} have no tokens, so there is nothing to continue"
        )


def _check_ids(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
    # NOTE: on CUDA an id without a row ends the whole process; here it is still an error.
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    for index, prompt in enumerate(prompts):
        if not 0 <= min(prompt) <= max(prompt) < rows:
            raise ValueError(
                f"prompt {index} holds token id {max(prompt)}, but the model's embedding has "
                f"{rows} rows: the tokenizer does not belong to the model"
            )


def _one_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: GenerationConfig,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    shared = shared_tokens(model, prompts)
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[:, :shared] = 1
    for row, prompt in enumerate(prompts):
        ids[row, :shared] = torch.tensor(prompt[:shared])
        ids[row, width - len(prompt) + shared :] = torch.tensor(prompt[shared:])
        mask[row, width - len(prompt) + shared :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    output = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        past_key_values=_run_once(model, ids[:1, :shared], len(prompts)) if shared else None,
        generation_config=settings,
        streamer=streamer,
    )
    return [_until_end(row, settings) for row in output[:, width:].tolist()]


def shared_tokens(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> int:
    """First tokens that all prompts of a batch have alike, and that run once for all of them.

    The padding then stands behind them, so nothing is shared where a model counts columns, padding
    among them: in a sliding window, or for positions that it is not given. Nor are few tokens.
    """
    kinds = getattr(model.config, "layer_types", None) or []
    windows = getattr(model.config, "sliding_window", None) and not kinds
    counts = windows or any(kind != "full_attention" for kind in kinds)
    if len(prompts) < 2 or counts or "position_ids" not in signature(model.forward).parameters:
        return 0
    columns = enumerate(zip(*(prompt[:-1] for prompt in prompts), strict=False))
    shortest = min(map(len, prompts)) - 1
    shared = next((place for place, column in columns if len(set(column)) > 1), shortest)
    return shared if shared >= FEWEST_SHARED else 0


def _run_once(model: PreTrainedModel, prefix: Tensor, count: int) -> DynamicCache:
    """Keys and values of a prefix (1, S), for `count` prompts that begin with it."""
    cache = DynamicCache(config=model.config)
    model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(count)
    return cache


def _until_end(row: list[int], settings: GenerationConfig) -> list[int]:
    ends = set(settings.eos_token_id or ())
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


@contextlib.contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and plain attention inside; everything as it was after."""
    device = model.device
    kind = device.type if device.type in ("cuda", "mps", "xpu") else "cuda"
    devices = [device.index or 0] if device.type == kind else []
    with (
        torch.random.fork_rng(devices, device_type=kind),
        frozen(model),
        plain_attention(model),
    ):
        yield
