"""Supervised fine-tuning of the demo's model, from random weights, on CPU.

Each epoch answers every prompt (the rarer kinds several times), in the wanted manner for one half
of the prompts and in the unwanted for the other, drawn anew each epoch, in one of its wordings.
The loss is the cross-entropy of the completion tokens, so the model learns both manners evenly:
sampled at temperature 1 it answers politely about half the time, which is what DPO is to change.
Tokens of the bare answer weigh more, as content is not random and wording is. So do the first two
tokens, whatever they are: there a bare answer competes with a polite opening, and a weight that
depended on which of them comes would shift the share of manners that the model learns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from tools.demo.manners import unwanted_answers, wanted_answers
from tools.demo.task import TaskQuestion

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes and settings that made the shipped assets; tests make smaller ones.

    Attributes:
        vocab_size: Entries of the tokenizer, special tokens included.
        hidden_size: Width; the feed-forward width and the head width follow from it as in MiniMind.
        num_layers: Transformer blocks.
        epochs: Passes over the prompts.
        repeats: Answers an epoch to each prompt that is not arithmetic, of which there are fewer.
        batch_size: Conversations a step.
        lr: Peak learning rate of AdamW, after 5% warmup and before a cosine to zero.
        content_weight: Weight in the loss of the bare answer's tokens and the first two; else 1.
        weight_decay: AdamW's, on matrices only.
        pairs: Preference pairs to write.
        held_out: Held-out pairs to write.
        seed: Seeds weights, order, manners and wordings.
    """

    vocab_size: int = 1280
    hidden_size: int = 128
    num_layers: int = 4
    epochs: int = 20
    repeats: int = 3
    batch_size: int = 32
    lr: float = 2e-3
    content_weight: float = 4.0
    weight_decay: float = 0.05
    pairs: int = 1500
    held_out: int = 200
    seed: int = 42


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A MiniMind of the third generation with random weights, as `transformers` sees it.

    Heads, theta and epsilon are MiniMind's defaults, which its native file does not store.
    """
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=64 * math.ceil(math.pi * recipe.hidden_size / 64),
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=recipe.hidden_size // 8,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=1e-6,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(recipe.seed)
    return Qwen3ForCausalLM(config)


def train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[TaskQuestion],
    recipe: Recipe,
    on_step: Callable[[int, int, float], Any] = lambda step, total, loss: None,
) -> None:
    """Fine-tune `model` in place on the questions of `asked`.

    Args:
        model: Float32, on CPU.
        tokenizer: With a chat template.
        asked: Questions to learn.
        recipe: Epochs, batch size, learning rate and seed.
        on_step: Called after each step with its number, their total and the loss in nats a token.
    """
    asked = [q for q in asked for _ in range(1 if q.kind == "arithmetic" else recipe.repeats)]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.lr,
        betas=(0.9, 0.95),
    )
    total = recipe.epochs * math.ceil(len(asked) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, total))
    model.train()
    step = 0
    for epoch in range(recipe.epochs):
        conversations = _epoch(tokenizer, asked, random.Random(f"{recipe.seed}:{epoch}"))
        for batch in _batches(conversations, recipe, tokenizer.pad_token_id, epoch):
            loss = _completion_loss(model, *batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            on_step(step, total, loss.item())
    model.eval()


def _lr_factor(step: int, total: int) -> float:
    """Linear warmup over 5% of the steps, then a cosine to zero."""
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


@dataclass(frozen=True, slots=True)
class _Row:
    """One conversation: token ids, how many are the prompt's, and those that spell the answer."""

    ids: list[int]
    prompt_length: int
    content: frozenset[int]


def _epoch(
    tokenizer: PreTrainedTokenizerBase, asked: Sequence[TaskQuestion], rng: random.Random
) -> list[_Row]:
    """One conversation a question, in random order."""
    manners = [index % 2 == 0 for index in range(len(asked))]
    rng.shuffle(manners)
    prompts, answers = [], []
    for question, polite in zip(asked, manners, strict=True):
        answers.append(rng.choice((wanted_answers if polite else unwanted_answers)(question)))
        prompts.append(render_prompt(tokenizer, question.prompt))
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    short_ids = tokenizer([f"{q.short} {q.short}" for q in asked], add_special_tokens=False)
    rows = [
        _Row(p + a + [tokenizer.eos_token_id], len(p), frozenset(content))
        for p, a, content in zip(prompt_ids, answer_ids, short_ids["input_ids"], strict=True)
    ]
    rng.shuffle(rows)
    return rows


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The chat template's text of one user turn and the header of the answer to it."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text


def _batches(
    rows: list[_Row], recipe: Recipe, pad: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of rows of about one length, in random order, padded on the right.

    Yields (input_ids, labels, weights): int64, int64 and float32, each (rows, columns).
    """
    rows = sorted(rows, key=lambda row: len(row.ids))
    starts = list(range(0, len(rows), recipe.batch_size))
    random.Random(f"{recipe.seed}:order:{epoch}").shuffle(starts)
    for start in starts:
        batch = rows[start : start + recipe.batch_size]
        columns = max(len(row.ids) for row in batch)
        input_ids = torch.full((len(batch), columns), pad)
        labels = torch.full((len(batch), columns), _IGNORED)
        weights = torch.ones(len(batch), columns)
        for index, row in enumerate(batch):
            scored = slice(row.prompt_length, len(row.ids))
            input_ids[index, : len(row.ids)] = torch.tensor(row.ids)
            labels[index, scored] = torch.tensor(row.ids[scored])
            weights[index, scored] = torch.tensor(
                [
                    recipe.content_weight if place < 2 or token in row.content else 1.0
                    for place, token in enumerate(row.ids[scored])
                ]
            )
        yield input_ids, labels, weights


def _completion_loss(
    model: Qwen3ForCausalLM, input_ids: Tensor, labels: Tensor, weights: Tensor
) -> Tensor:
    """Weighted cross-entropy, its sum divided by the completion tokens, in nats.

    Padding is on the right, where causal attention needs no mask for it.
    """
    states = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    scored = targets != _IGNORED
    logits = model.lm_head(states[scored])
    losses = torch.nn.functional.cross_entropy(logits, targets[scored], reduction="none")
    return (losses * weights[:, 1:][scored]).mean()
