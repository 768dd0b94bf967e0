"""Multiplications that DPO needs, and those that a way of training does.

A multiply and an add are 2 FLOPs. For B weights in the backbone's matrices, V x H in the head,
L layers with attention as wide as A = heads x head_dim, a forward pass over T tokens of which N
are scored, with K (query, key) pairs in all its attention, takes

    2 B T  +  2 V H N  +  4 L A K

and its backward pass twice that. What is needed is the prefix-shared minimum: prompt, chosen and
rejected once each, causal attention, the head on scored tokens, three forward-equivalents for the
policy and one more where the reference is part of the work. What is done beyond it is padding,
prompts run twice, logits nobody scores, masked attention, and products made again in the backward
pass to save memory. Norms, activations, the optimizer and embeddings are not counted in either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

FLASH_BACKWARD = 2.5
"""Fused attention makes the scores again: five products where the forward pass has two."""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What the arithmetic of a dense decoder depends on.

    Attributes:
        backbone: Weights in the backbone's matrices, B.
        head: Weights of the head, V x H.
        attention: Layers x heads x head_dim, L A.
    """

    backbone: int
    head: int
    attention: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Dimensions:
        """Read them off a model.

        Raises:
            ValueError: It has experts, whose share of work differs by token.
        """
        config = model.config
        for name in ("num_experts", "num_local_experts", "moe_num_experts"):
            if getattr(config, name, None):
                raise ValueError(
                    f"--model: {type(model).__name__} has experts ({name}), and the arithmetic of "
                    "this benchmark counts dense models only; name a dense one"
                )
        head = model.get_output_embeddings().weight
        matrices = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear)]
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            backbone=sum(m.weight.numel() for m in matrices),
            head=head.numel(),
            attention=config.num_hidden_layers * heads * width,
        )


@dataclass(frozen=True, slots=True)
class Passes:
    """What one forward pass over all pairs covers.

    Attributes:
        tokens: Tokens of the backbone, T.
        scored: Tokens of the head, N.
        attended: (query, key) pairs, K.
    """

    tokens: int
    scored: int
    attended: int


def layout_passes(
    layout: str, lengths: np.ndarray, batch_size: int = 0, max_length: int = 0
) -> Passes:
    """Count a forward pass.

    Args:
        layout: `shared`, `packed`, `dynamic` (rectangles as wide as their longest row, attention
            under a mask, which no kernel cuts short) or `notebook` (rectangles of max_length - 1
            with every logit, attention causal).
        lengths: (pairs, 3), tokens of prompt, chosen and rejected, in order of training.
        batch_size: Pairs of a rectangle.
        max_length: For the notebook.
    """
    prompt, chosen, rejected = lengths.astype(np.int64).T
    scored = int((chosen + rejected).sum())
    one, two = prompt + chosen - 1, prompt + rejected - 1
    if layout == "shared":
        own = rejected - 1
        attended = _triangle(one) + own * prompt + _triangle(own)
        return Passes(int((one + own).sum()), scored, int(attended.sum()))
    if layout == "packed":
        return Passes(int((one + two).sum()), scored, int((_triangle(one) + _triangle(two)).sum()))
    if layout == "notebook":
        width, rows = max_length - 1, 2 * len(lengths)
        return Passes(rows * width, rows * width, rows * int(_triangle(np.array(width))))
    assert layout == "dynamic", layout
    longest = np.maximum(one, two)
    tokens = attended = 0
    for start in range(0, len(lengths), batch_size):
        part = longest[start : start + batch_size]
        tokens += 2 * len(part) * int(part.max())
        attended += 2 * len(part) * int(part.max()) ** 2
    return Passes(tokens, scored, attended)


def useful_flops(dims: Dimensions, lengths: np.ndarray, reference: bool) -> float:
    """FLOPs that one epoch over these pairs needs; `reference` is part of the work or is not."""
    passes = layout_passes("shared", lengths)
    return (4.0 if reference else 3.0) * _forward(dims, passes)


def executed_flops(
    dims: Dimensions, policy: Passes, reference: Passes | None, head_again: bool
) -> float:
    """FLOPs of a way.

    Args:
        dims: The model.
        policy: Its forward pass; the backward pass follows.
        reference: The frozen model's forward pass, if it is part of the work.
        head_again: The backward pass makes the logits again.
    """
    linear = 3.0 * 2 * dims.backbone * policy.tokens
    head = (4.0 if head_again else 3.0) * 2 * dims.head * policy.scored
    attention = (1 + FLASH_BACKWARD) * 4 * dims.attention * policy.attended
    ahead = 0.0 if reference is None else _forward(dims, reference)
    return linear + head + attention + ahead


def _forward(dims: Dimensions, passes: Passes) -> float:
    return (
        2.0 * dims.backbone * passes.tokens
        + 2.0 * dims.head * passes.scored
        + 4.0 * dims.attention * passes.attended
    )


def _triangle(length: np.ndarray) -> np.ndarray:
    return length * (length + 1) // 2
