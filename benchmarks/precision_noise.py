"""Noise of a log-ratio under autocast: `python benchmarks/precision_noise.py`.

The policy is the demo's model, its weights moved by a relative 1e-5, about what DPO's first steps
do; the reference is the model itself. The log-ratio of an answer in half precision is compared with
that in float32, where both models score the same batch and where the reference scored other batches
(as it does ahead of training). Prints root mean squares in nats.
"""

from __future__ import annotations

import copy
import json

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.demo import MODEL, PREFERENCES, TOKENIZER
from minimind_dpo.evaluation.scoring import score
from minimind_dpo.models.load import load_model

PAIRS, JOINED = 64, 8
"""Pairs measured, and how many demo answers are joined to make one of about 150 tokens."""


def pairs() -> list[TokenizedPair]:
    """Long answers, made of the demo's short ones."""
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    lines = [json.loads(line) for line in PREFERENCES.read_text(encoding="utf-8").splitlines()]

    def ids(key: str, start: int) -> np.ndarray:
        texts = [lines[start + i][key][-1]["content"] for i in range(JOINED)]
        return np.asarray(tokenizer(" ".join(texts))["input_ids"], dtype=np.int32)

    prompt = np.asarray(tokenizer("Q:")["input_ids"], dtype=np.int32)
    return [
        TokenizedPair(prompt, ids("chosen", i * JOINED), ids("rejected", i * JOINED), i)
        for i in range(PAIRS)
    ]


@torch.no_grad()
def sums(
    model: PreTrainedModel, rows: list[TokenizedPair], size: int, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen log-probs (P,), and their gaps to the rejected ones (P,), in nats."""
    chosen, rejected = [], []
    for start in range(0, len(rows), size):
        batch = Collator("prefix_shared")(rows[start : start + size])
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            values = score(model, batch).sums.double()
        count = batch.num_pairs
        chosen.append(values[:count])
        rejected.append(values[count:])
    return torch.cat(chosen), torch.cat(chosen) - torch.cat(rejected)


def main() -> None:
    """Measure and print."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
    reference = load_model(str(MODEL), tokenizer).model.eval()
    policy = copy.deepcopy(reference)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1 + 1e-5 * torch.randn_like(weight))
    rows = pairs()
    length = sum(len(row.chosen_ids) for row in rows) / len(rows)
    exact = _log_ratios(policy, reference, rows, 8, None)
    true = float(exact[0].square().mean().sqrt())
    print(f"answers of {length:.0f} tokens; true log-ratio {true:.4f} nats rms")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for label, size in (("same batches", 8), ("other batches", 3)):
            rounded = _log_ratios(policy, reference, rows, size, dtype)
            noise = [
                float((a - b).square().mean().sqrt()) for a, b in zip(rounded, exact, strict=True)
            ]
            print(f"{name}, {label}: answer {noise[0]:.4f}, gap of a pair {noise[1]:.4f} nats rms")


def _log_ratios(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: list[TokenizedPair],
    size: int,
    dtype: torch.dtype | None,
) -> list[torch.Tensor]:
    """Of chosen answers (P,), and of the gaps (P,); the reference scores `size` pairs a batch."""
    ours, theirs = sums(policy, rows, 8, dtype), sums(reference, rows, size, dtype)
    return [a - b for a, b in zip(ours, theirs, strict=True)]


if __name__ == "__main__":
    main()
