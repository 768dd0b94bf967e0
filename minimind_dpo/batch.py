"""The types that cross packages: pairs as read, as tokens, and as a batch.

`data` makes them, `models` runs them, `objective` scores them; none of those three imports
another, so what they share lives here. Letters used in shapes:

    T  tokens of a batch that go through the model
    N  scored completion tokens, N < T
    P  preference pairs; sequences are ordered [chosen 0..P-1, rejected 0..P-1], 2P of them
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

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
        template_options: Variables of the chat template for this pair alone (the
            `chat_template_kwargs` column).
    """

    prompt: tuple[Message, ...] | str
    chosen: Message | str
    rejected: Message | str
    source: str
    tools: tuple[dict[str, Any], ...] | None = None
    margin: float = 0.0
    weight: float = 1.0
    template_options: dict[str, Any] | None = None


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


_ROUND = 128


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
        longest_query: At least the longest query length, rounded up to a multiple of `_ROUND`, so
            that batches of like size look alike to a compiled kernel.
        longest_key: The same of key lengths.
        shares: Whether any sequence borrows keys.
        masks: Scratch space of the attention function: masks made once a batch, by kind.
    """

    query_lengths: tuple[int, ...]
    borrowed: tuple[int, ...]
    key_index: Tensor
    query_offsets: Tensor
    key_offsets: Tensor
    longest_query: int = field(init=False)
    longest_key: int = field(init=False)
    shares: bool = field(init=False)
    masks: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, lengths in (("query", self.query_lengths), ("key", self.key_lengths)):
            rounded = -(-max(lengths, default=0) // _ROUND) * _ROUND
            object.__setattr__(self, f"longest_{name}", rounded)
        object.__setattr__(self, "shares", any(self.borrowed))

    TENSORS: ClassVar = ("key_index", "query_offsets", "key_offsets")

    @property
    def key_lengths(self) -> tuple[int, ...]:
        """Keys that each sequence sees, borrowed and its own."""
        return tuple(b + q for b, q in zip(self.borrowed, self.query_lengths, strict=True))


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
        num_tokens: Tokens of this batch that are not padding; counted where the batch is made, so
            that a device need not be asked.

    Its tensors are never replaced: a copy that has been made of them, packed, stays true.
    """

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
        num_tokens: int | None = None,
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
        if num_tokens is None:
            num_tokens = int(input_ids.numel() if attention_mask is None else attention_mask.sum())
        self.num_tokens = num_tokens
        self._buffers: _Packed | None = None

    @property
    def num_pairs(self) -> int:
        """P, which may be 0."""
        return self.pair_index.numel()

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> PreferenceBatch:
        """Copy on `device`, one transfer a dtype; floats keep their precision.

        Args:
            device: Where to.
            non_blocking: Let the host go on during the copy. None: on the way to CUDA, as Lightning
                asks it of plain tensors alone.
        """
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"
        return self._map(lambda buffer: buffer.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PreferenceBatch:
        """Copy in page-locked memory, for transfers to a GPU that the host does not wait for."""
        return self._map(lambda buffer: buffer.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> PreferenceBatch:
        return _unpacked(self._packed().map(function), self._plain())

    def _packed(self) -> _Packed:
        if self._buffers is None:
            tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
            if self.plan is not None:
                tensors |= {name: getattr(self.plan, name) for name in AttentionPlan.TENSORS}
            self._buffers = _Packed.of(tensors)
        return self._buffers

    def _plain(self) -> dict[str, Any]:
        """What is no tensor."""
        lengths = None if self.plan is None else (self.plan.query_lengths, self.plan.borrowed)
        return {
            "plan_lengths": lengths,
            "window": self.window,
            "padded_positions": self.padded_positions,
            "num_tokens": self.num_tokens,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # A loading process hands over a few buffers, not a file descriptor for each tensor.
        return _unpacked, (self._packed(), self._plain())


@dataclass(frozen=True, slots=True)
class _Packed:
    """Named tensors side by side: one buffer a dtype, so that few copies move them all.

    Attributes:
        buffers: The elements of all tensors of a dtype, (sum of their sizes,).
        shapes: Dtype and shape of each tensor, in the order of the buffers.
    """

    buffers: dict[torch.dtype, Tensor]
    shapes: dict[str, tuple[torch.dtype, torch.Size]]

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> _Packed:
        """Copy tensors into buffers."""
        parts: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors.values():
            parts.setdefault(tensor.dtype, []).append(tensor.reshape(-1))
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        return cls({dtype: torch.cat(flat) for dtype, flat in parts.items()}, shapes)

    def map(self, function: Callable[[Tensor], Tensor]) -> _Packed:
        """The same tensors in other memory."""
        return _Packed({dtype: function(x) for dtype, x in self.buffers.items()}, self.shapes)

    def tensors(self) -> dict[str, Tensor]:
        """Views of the buffers."""
        start = dict.fromkeys(self.buffers, 0)
        views: dict[str, Tensor] = {}
        for name, (dtype, shape) in self.shapes.items():
            end = start[dtype] + shape.numel()
            views[name] = self.buffers[dtype][start[dtype] : end].view(shape)
            start[dtype] = end
        return views


def _unpacked(packed: _Packed, plain: dict[str, Any]) -> PreferenceBatch:
    tensors: dict[str, Any] = packed.tensors()
    lengths = plain.pop("plan_lengths")
    plan = None
    if lengths is not None:
        plan = AttentionPlan(*lengths, *(tensors.pop(name) for name in AttentionPlan.TENSORS))
    batch = PreferenceBatch(plan=plan, **tensors, **plain)
    batch._buffers = packed
    return batch


def split_sides(values: Tensor | Sequence[Any]) -> tuple[Any, Any]:
    """Cut something ordered [chosen 0..P-1, rejected 0..P-1] into its two halves."""
    half = len(values) // 2
    return values[:half], values[half:]
