"""The types that cross rooms: pairs as read, as tokens, as a batch, and as log-probs.

`data` makes them, `models` runs them, `objective` scores them; none of those three imports
another, so what they share lives here. Letters used in shapes:

    T  tokens of a batch that go through the model
    N  scored completion tokens, N < T
    P  preference pairs; sequences are ordered [chosen 0..P-1, rejected 0..P-1], 2P of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

Message: TypeAlias = dict[str, Any]
"""One chat turn: `role`, `content`, and optionally `reasoning_content`, `tool_calls`, `name`."""


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One line of a preference file.

    Attributes:
        prompt: The turns before the answer. Plain text where the file has no turns.
        chosen: The preferred last assistant turn, or its plain text.
        rejected: The other one, of the same kind.
        source: Where it was read, `dpo.jsonl:17`, for messages to people.
        tools: Function signatures for the chat template, if the file has any.
        margin: Extra reward gap this pair asks for (the `margin` column), in nats of reward.
        weight: Weight of this pair's loss (the `weight` column), 1 for all by default.
    """

    prompt: tuple[Message, ...] | str
    chosen: Message | str
    rejected: Message | str
    source: str
    tools: tuple[dict[str, Any], ...] | None = None
    margin: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """One pair as token ids, ready to be laid out.

    Attributes:
        prompt_ids: int32 (prompt length,), shared by both sides; the last one predicts the first
            token of either completion.
        chosen_ids: int32 (chosen length,), content and end-of-turn token; every one is scored.
        rejected_ids: int32 (rejected length,), likewise.
        index: Row in the token store, stable across epochs, runs and devices.
        source: `dpo.jsonl:17`.
        margin: As in `PreferencePair`.
        weight: As in `PreferencePair`.
        reference_logps: float32 (chosen length + rejected length,) log-probs of the frozen
            reference for each scored token, chosen first; None until they are computed.
    """

    prompt_ids: np.ndarray
    chosen_ids: np.ndarray
    rejected_ids: np.ndarray
    index: int
    source: str = ""
    margin: float = 0.0
    weight: float = 1.0
    reference_logps: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Which keys each of T packed tokens attends to, without a mask.

    The T tokens are cut, in order, into attention sequences. Sequence s owns `query_lengths[s]`
    tokens. Its keys are the first `borrowed[s]` keys of sequence s-1 followed by its own tokens,
    and attention is causal with the last query aligned to the last key. A shared prompt is
    thus computed once: [prompt + chosen] owns its tokens, [rejected] borrows the prompt's keys.

    Attributes:
        query_lengths: Tokens each sequence owns; they sum to T.
        borrowed: Keys each sequence borrows from the front of the one before it (0 for none).
        key_index: int64 (sum of key lengths,), the token behind each key, sequence by sequence.
        query_offsets: int32 (S + 1,), cumulative query lengths, for variable-length kernels.
        key_offsets: int32 (S + 1,), cumulative key lengths.
        masks: Scratch space of the attention function: masks made once a batch, by kind.
    """

    query_lengths: tuple[int, ...]
    borrowed: tuple[int, ...]
    key_index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    masks: dict[Any, Any] = field(default_factory=dict)

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """Keys that each sequence sees, borrowed and its own."""
        return tuple(b + q for b, q in zip(self.borrowed, self.query_lengths, strict=True))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> AttentionPlan:
        """Copy with its tensors on `device`; masks are made anew there."""
        return AttentionPlan(
            self.query_lengths,
            self.borrowed,
            self.key_index.to(device, non_blocking=non_blocking),
            self.query_offsets.to(device, non_blocking=non_blocking),
            self.key_offsets.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> AttentionPlan:
        """Copy with its tensors in page-locked memory."""
        return AttentionPlan(
            self.query_lengths,
            self.borrowed,
            self.key_index.pin_memory(),
            self.query_offsets.pin_memory(),
            self.key_offsets.pin_memory(),
        )


class Window(NamedTuple):
    """What one optimizer step holds, over all its micro-batches and ranks."""

    pairs: int
    chosen_tokens: int


class PreferenceBatch:
    """P pairs laid out for one forward pass; the only place that knows the label shift.

    A plain class on purpose. NOTE: Lightning's precision plugins walk dataclasses and cast their
    floats, which would round reference log-probs to half precision; frozen ones crash.

    Attributes:
        input_ids: int64 (T,). T may be 0 (a rank with no pair left in a step).
        position_ids: int64 (T,); both completions of a pair continue the prompt's positions.
        plan: How the T tokens attend to each other; None for the rectangle.
        attention_mask: int64 (rows, columns), rows * columns = T, for the rectangle; else None.
        predictor_index: int64 (N,), the token whose state predicts each scored token.
        target_id: int64 (N,), the scored tokens.
        sequence_id: int64 (N,), in [0, 2P): chosen of pair p is p, rejected is P + p.
        lengths: int64 (2P,), scored tokens of each sequence.
        pair_index: int64 (P,), rows of the token store.
        margins: float32 (P,).
        weights: float32 (P,).
        reference_token_logps: float32 (N,), or None where the reference is run online or absent.
        window: What the optimizer step of this micro-batch holds; the batch itself by default.
        padded_positions: Label positions of a rectangle padded to the longest allowed length,
            which the `padded_mean` reduction divides by, whatever the layout.
    """

    _TENSORS = (
        "input_ids",
        "position_ids",
        "attention_mask",
        "predictor_index",
        "target_id",
        "sequence_id",
        "lengths",
        "pair_index",
        "margins",
        "weights",
        "reference_token_logps",
    )

    def __init__(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        predictor_index: Tensor,
        target_id: Tensor,
        sequence_id: Tensor,
        lengths: Tensor,
        pair_index: Tensor,
        margins: Tensor,
        weights: Tensor,
        plan: AttentionPlan | None = None,
        attention_mask: Tensor | None = None,
        reference_token_logps: Tensor | None = None,
        window: Window | None = None,
        padded_positions: int = 0,
    ) -> None:
        self.input_ids = input_ids
        self.position_ids = position_ids
        self.plan = plan
        self.attention_mask = attention_mask
        self.predictor_index = predictor_index
        self.target_id = target_id
        self.sequence_id = sequence_id
        self.lengths = lengths
        self.pair_index = pair_index
        self.margins = margins
        self.weights = weights
        self.reference_token_logps = reference_token_logps
        self.window = window or Window(self.num_pairs, int(split_sides(lengths)[0].sum()))
        self.padded_positions = padded_positions

    @property
    def num_pairs(self) -> int:
        """P, which may be 0."""
        return self.pair_index.numel()

    @property
    def num_tokens(self) -> int:
        """Tokens of this batch that are not padding."""
        if self.attention_mask is not None:
            return int(self.attention_mask.sum())
        return self.input_ids.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PreferenceBatch:
        """Copy on `device`; floats keep their precision."""
        return self._map(
            lambda tensor: tensor.to(device, non_blocking=non_blocking),
            None if self.plan is None else self.plan.to(device, non_blocking),
        )

    def pin_memory(self) -> PreferenceBatch:
        """Copy in page-locked memory, for fast transfers to a GPU."""
        plan = None if self.plan is None else self.plan.pin_memory()
        return self._map(lambda tensor: tensor.pin_memory(), plan)

    def _map(self, function: Any, plan: AttentionPlan | None) -> PreferenceBatch:
        tensors = {name: getattr(self, name) for name in self._TENSORS}
        moved: dict[str, Any] = {
            name: None if tensor is None else function(tensor) for name, tensor in tensors.items()
        }
        return PreferenceBatch(
            plan=plan,
            window=self.window,
            padded_positions=self.padded_positions,
            **moved,
        )


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probs of the scored tokens of P pairs under one model.

    Attributes:
        token_logps: float32 (N,) log p(token | before it), in nats.
        sequence_id: int64 (N,), as in `PreferenceBatch`.
        lengths: int64 (2P,), scored tokens of each sequence.
        entropy: float32 (N,) entropy of the predicting distribution in nats, no gradient; None
            where it was not asked for.
        log_sum_sq_probs: float32 (N,) log of the sum of squared probabilities of the predicting
            distribution, no gradient, for WPO weighting; None where it was not asked for.
        aux_loss: Mixture-of-experts balance loss of the forward pass, scalar, or None.
    """

    token_logps: Tensor
    sequence_id: Tensor
    lengths: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.lengths.numel() // 2

    def sum_per_sequence(self, values: Tensor) -> Tensor:
        """Sum per-token `values` (N,) into sequences: (2P,), chosen first."""
        total = torch.zeros(self.lengths.numel(), dtype=values.dtype, device=values.device)
        return total.index_add(0, self.sequence_id, values)

    @property
    def sums(self) -> Tensor:
        """Sequence log-probs (2P,), chosen first, in nats."""
        return self.sum_per_sequence(self.token_logps)


def split_sides(values: Tensor | Sequence[Any]) -> tuple[Any, Any]:
    """Cut something ordered [chosen 0..P-1, rejected 0..P-1] into its two halves."""
    half = len(values) // 2
    return values[:half], values[half:]
