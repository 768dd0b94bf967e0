"""How a model answers the demo's held-out prompts: sample, judge, and compare with the reference.

Answers are drawn at temperature 1 from the whole distribution (no top-k, no top-p), so shares of
answers are probabilities of the policy itself. The KL divergence to the reference is estimated on
the same answers y, with the inner expectation taken exactly at each token:

    KL(policy || reference) ~ mean over y of sum over t of
        sum over v of policy(v | x, y<t) * log(policy(v | x, y<t) / reference(v | x, y<t))

which is unbiased, never negative, and varies less than the sum of log-ratios of the drawn tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo import HELD_OUT
from minimind_dpo.demo.judge import judge
from minimind_dpo.demo.task import question_of


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled answer and what the judge says of it.

    Attributes:
        prompt: The user's turn.
        text: The answer without its end-of-turn token.
        finished: Whether the model ended its turn; an answer cut off is never in wanted manner.
        wanted: As in `Verdict`.
        correct: As in `Verdict`.
    """

    prompt: str
    text: str
    finished: bool
    wanted: bool
    correct: bool


@dataclass(frozen=True, slots=True)
class DemoScores:
    """What the demo's table shows of one model.

    Attributes:
        wanted: Share of answers in wanted manner, in [0, 1].
        correct: Share of answers with right content, in [0, 1].
        mean_tokens: Mean length of an answer in tokens, the end-of-turn token included.
        kl: KL(policy || reference) in nats an answer; None without a reference.
        answers: All sampled answers, prompt by prompt.
        preference_accuracy: Share of held-out pairs whose chosen side has the higher implicit
            reward, in [0, 1]; measured by the trainer, None until it is filled in.
    """

    wanted: float
    correct: float
    mean_tokens: float
    kl: float | None
    answers: tuple[Answer, ...]
    preference_accuracy: float | None = None

    def numbers(self) -> dict[str, float | int | None]:
        """The scores as plain numbers, for a summary file."""
        return {
            "preference_accuracy": self.preference_accuracy,
            "wanted_share": self.wanted,
            "correct_share": self.correct,
            "kl": self.kl,
            "mean_answer_tokens": self.mean_tokens,
            "answers": len(self.answers),
        }


def held_out_prompts(path: Path = HELD_OUT) -> list[str]:
    """User turns of a file of held-out pairs, each once, in the file's order."""
    with path.open(encoding="utf-8") as lines:
        prompts = [json.loads(line)["chosen"][0]["content"] for line in lines]
    return list(dict.fromkeys(prompts))


def evaluate(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[str],
    *,
    reference: PreTrainedModel | None = None,
    samples_per_prompt: int = 3,
    seed: int = 0,
    max_new_tokens: int = 48,
    batch_size: int = 256,
) -> DemoScores:
    """Sample answers to the demo's prompts and judge them.

    Both models keep their train or eval mode and their attention implementation, and the random
    state of the process is left as it was: a training run goes on as if nothing had happened.

    Args:
        model: The policy, a causal language model on any device.
        chat: Of the demo's tokenizer.
        prompts: User turns that the demo knows, such as those of `held_out_prompts`.
        reference: The model to measure KL against, on the same device; None leaves KL out.
        samples_per_prompt: Answers drawn for each prompt.
        seed: Of the draws; the same seed on the same device draws the same answers.
        max_new_tokens: Answers are cut here; the demo's own are at most half as long.
        batch_size: Answers drawn at a time.

    Raises:
        ValueError: No prompts, one that the demo does not know, or fewer than one sample.
    """
    if not prompts or samples_per_prompt < 1:
        raise ValueError(
            f"evaluate needs prompts and samples, got {len(prompts)} prompts and "
            f"samples_per_prompt={samples_per_prompt}: give at least one of each"
        )
    for prompt in prompts:
        question_of(prompt)
    asked = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    answers: list[Answer] = []
    tokens, kl = 0.0, 0.0
    with ExitStack() as stack:
        stack.enter_context(_seeded(seed, model.device))
        for each in (model,) if reference is None else (model, reference):
            stack.enter_context(_plain_inference(each))
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            drawn = _draw(model, chat, batch, max_new_tokens)
            tokens += float(drawn.scored.sum())
            if reference is not None:
                kl += _kl_sum(model, reference, drawn)
            answers += _judged(chat, batch, drawn)
    return DemoScores(
        wanted=sum(answer.wanted for answer in answers) / len(answers),
        correct=sum(answer.correct for answer in answers) / len(answers),
        mean_tokens=tokens / len(answers),
        kl=None if reference is None else kl / len(answers),
        answers=tuple(answers),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """B prompts, padded on the left, and their answers, padded on the right.

    Attributes:
        input_ids: int64 (B, prompt columns + answer columns).
        attention_mask: int64 of the same shape, 0 on padding.
        scored: bool (B, answer columns), the answers' tokens up to their end-of-turn token.
        finished: bool (B,), whether there is one.
    """

    input_ids: Tensor
    attention_mask: Tensor
    scored: Tensor
    finished: Tensor


def _draw(
    model: PreTrainedModel,
    chat: Chat,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> _Drawn:
    tokenizer = chat.tokenizer
    encoded = tokenizer.pad(
        {"input_ids": [chat.encode_prompt(chat.question(prompt)) for prompt in prompts]},
        padding_side="left",
        return_tensors="pt",
    ).to(model.device)
    prompt_ids, prompt_mask = encoded["input_ids"], encoded["attention_mask"]
    generate: Any = model.generate
    input_ids = generate(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        generation_config=GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    ends = input_ids[:, prompt_ids.shape[1] :] == tokenizer.eos_token_id
    scored = ends.cumsum(dim=1) - ends.long() == 0
    attention_mask = torch.cat([prompt_mask, scored.long()], dim=1)
    return _Drawn(input_ids, attention_mask, scored, ends.any(dim=1))


def _judged(chat: Chat, prompts: Sequence[str], drawn: _Drawn) -> Iterator[Answer]:
    columns = drawn.scored.shape[1]
    for row, prompt in enumerate(prompts):
        ids = drawn.input_ids[row, -columns:][drawn.scored[row]].tolist()
        finished = bool(drawn.finished[row])
        text = chat.decode(ids[:-1] if finished else ids, special=True)
        verdict = judge(prompt, text)
        yield Answer(prompt, text, finished, verdict.wanted and finished, verdict.correct)


def _kl_sum(model: PreTrainedModel, reference: PreTrainedModel, drawn: _Drawn) -> float:
    """Sum over answers of KL(policy || reference) in nats, in float64 on the host."""
    columns = drawn.scored.shape[1]
    position_ids = (drawn.attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    total = 0.0
    for rows in torch.arange(len(drawn.scored), device=drawn.scored.device).split(64):
        policy_logps, reference_logps = (
            each(
                input_ids=drawn.input_ids[rows],
                attention_mask=drawn.attention_mask[rows],
                position_ids=position_ids[rows],
                logits_to_keep=columns + 1,
                use_cache=False,
            )
            .logits[:, :-1][drawn.scored[rows]]
            .float()
            .log_softmax(dim=-1)
            for each in (model, reference)
        )
        kl = (policy_logps.exp() * (policy_logps - reference_logps)).sum(dim=-1)
        total += float(kl.cpu().double().sum())
    return total


@contextmanager
def _plain_inference(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, no gradients, and attention that knows padding masks and caches."""
    training = {module: module.training for module in model.modules()}
    attention = model.config._attn_implementation
    model.eval()
    model.set_attn_implementation("sdpa")
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(attention)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators, and give them back in the state in which they were."""
    accelerator = None if device.type == "cpu" else getattr(torch, device.type)
    host_state = torch.get_rng_state()
    device_state = None if accelerator is None else accelerator.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(host_state)
        if accelerator is not None:
            accelerator.set_rng_state(device_state)
