"""How a model answers the demo's held-out prompts: sample, judge, and compare with the reference.

Answers are drawn at temperature 1 from the whole distribution (no top-k, no top-p), so shares of
answers are probabilities of the policy itself. The KL divergence to the reference is estimated on
the same answers y, with the inner expectation taken exactly at each token:

    KL(policy || reference) ~ mean over y of sum over t of
        sum over v of policy(v | x, y<t) * log(policy(v | x, y<t) / reference(v | x, y<t))

which is unbiased, never negative, and varies less than the sum of log-ratios of the drawn tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo import HELD_OUT
from minimind_dpo.demo.judge import judge
from minimind_dpo.demo.questions import question_of
from minimind_dpo.disk import read_lines
from minimind_dpo.evaluation.sampling import sample_completions
from minimind_dpo.evaluation.scoring import frozen
from minimind_dpo.models.attention.planned import plain_attention


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
    return list(dict.fromkeys(row["chosen"][0]["content"] for row in read_lines(path)))


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
    repeated = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    prompt_ids = [chat.encode_prompt(chat.question(prompt)) for prompt in repeated]
    end = chat.tokenizer.eos_token_id
    completions = sample_completions(
        model,
        prompt_ids,
        end_ids=[end],
        max_new_tokens=max_new_tokens,
        seed=seed,
        seed_each_batch=False,
        batch_size=batch_size,
    )
    answers = tuple(_judged(chat, *each, end) for each in zip(repeated, completions, strict=True))
    kl = None
    if reference is not None:
        nats = 0.0
        for start in range(0, len(repeated), batch_size):
            rows = slice(start, start + batch_size)
            nats += _kl_sum(model, reference, prompt_ids[rows], completions[rows])
        kl = nats / len(repeated)
    return DemoScores(
        wanted=sum(answer.wanted for answer in answers) / len(answers),
        correct=sum(answer.correct for answer in answers) / len(answers),
        mean_tokens=sum(map(len, completions)) / len(answers),
        kl=kl,
        answers=answers,
    )


def _judged(chat: Chat, prompt: str, ids: list[int], end: int) -> Answer:
    finished = ids[-1] == end
    text = chat.decode(ids[:-1] if finished else ids, special=True)
    verdict = judge(prompt, text)
    return Answer(prompt, text, finished, verdict.wanted and finished, verdict.correct)


def _kl_sum(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
) -> float:
    """Sum over answers of KL(policy || reference) in nats, in float64 on the host."""
    width, columns = (max(map(len, each)) for each in (prompts, answers))
    input_ids = torch.zeros(len(prompts), width + columns, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        place = slice(width - len(prompt), width + len(answer))
        input_ids[row, place] = torch.tensor([*prompt, *answer])
        mask[row, place] = 1
    position_ids = (mask.cumsum(dim=1) - 1).clamp_min(0)
    device = model.device
    total = 0.0
    with frozen(model), frozen(reference), plain_attention(model), plain_attention(reference):
        for rows in torch.arange(len(prompts)).split(64):
            scored = mask[rows, width:].bool()
            policy_logps, reference_logps = (  # (scored tokens, words)
                each(
                    input_ids=input_ids[rows].to(device),
                    attention_mask=mask[rows].to(device),
                    position_ids=position_ids[rows].to(device),
                    logits_to_keep=columns + 1,
                    use_cache=False,
                )
                .logits[:, :-1][scored.to(device)]
                .float()
                .log_softmax(dim=-1)
                for each in (model, reference)
            )
            kl = (policy_logps.exp() * (policy_logps - reference_logps)).sum(dim=-1)
            total += float(kl.cpu().double().sum())
    return total
