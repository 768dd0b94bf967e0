"""Lay pairs out for one forward pass; the label shift and the layout live here and nowhere else.

Three layouts that give the same numbers, with a prompt of p tokens and completions of c and r:

- `prefix_shared`: p + (c - 1) + (r - 1) tokens. The prompt is run once; the rejected completion
  borrows its keys and continues its positions. The last prompt token predicts the first token of
  both completions.
- `packed`: two sequences of p + c - 1 and p + r - 1 tokens, one after the other, no padding.
- `padded`: the same two sequences as rows of a rectangle, padded on the right.

The last token of a completion predicts nothing, so it is scored but never run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from minimind_dpo.batch import AttentionPlan, PreferenceBatch, TokenizedPair, Window
from minimind_dpo.data.options import LAYOUTS


class Collator:
    """Turn tokenised pairs into a `PreferenceBatch`.

    Args:
        layout: One of `LAYOUTS`.
        pad_id: Token that fills the rectangle; never scored, never attended to.
        max_length: Longest prompt + completion; `padded_mean` divides by max_length - 1.
        pad_to_max_length: Make every rectangle max_length - 1 wide, as the original notebook
            does, instead of as wide as its longest row.
    """

    def __init__(
        self,
        layout: str = "prefix_shared",
        *,
        pad_id: int = 0,
        max_length: int = 1024,
        pad_to_max_length: bool = False,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"data.layout is {layout!r}, but must be one of {', '.join(LAYOUTS)}")
        self.layout = layout
        self.pad_id = pad_id
        self.max_length = max_length
        self.pad_to_max_length = pad_to_max_length

    def __call__(
        self, pairs: Sequence[TokenizedPair], window: Window | None = None
    ) -> PreferenceBatch:
        """Lay out P pairs; P may be 0.

        Args:
            pairs: Pairs whose prompts have at least one token.
            window: What the whole optimizer step holds; these pairs alone where None.
        """
        fill: dict[str, Callable[[Sequence[TokenizedPair]], _Layout]] = {
            "prefix_shared": _prefix_shared,
            "packed": _packed,
            "padded": self._padded,
        }
        laid_out = fill[self.layout](pairs)
        chosen = [pair.chosen_ids for pair in pairs]
        rejected = [pair.rejected_ids for pair in pairs]
        lengths = np.array([len(ids) for ids in chosen + rejected], dtype=np.int64)
        return PreferenceBatch(
            input_ids=_long(laid_out.input_ids),
            position_ids=_long(laid_out.position_ids),
            plan=laid_out.plan,
            attention_mask=laid_out.attention_mask,
            predictor_index=_long(laid_out.predictors),
            target_id=_long(chosen + rejected),
            sequence_id=torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
            lengths=torch.from_numpy(lengths),
            pair_index=torch.tensor([pair.index for pair in pairs], dtype=torch.int64),
            margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float32),
            weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float32),
            reference_token_logps=_reference_logps(pairs),
            window=window,
            padded_positions=self.max_length - 1,
        )

    def tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens that each pair puts through the model: (n, 3) lengths to (n,)."""
        prompt, chosen, rejected = lengths.astype(np.int64).T
        if self.layout == "prefix_shared":
            return prompt + chosen + rejected - 2
        if self.layout == "padded" and self.pad_to_max_length:
            return np.full(len(lengths), 2 * (self.max_length - 1))
        return 2 * prompt + chosen + rejected - 2

    def _padded(self, pairs: Sequence[TokenizedPair]) -> _Layout:
        rows = [np.concatenate([p.prompt_ids, p.chosen_ids[:-1]]) for p in pairs]
        rows += [np.concatenate([p.prompt_ids, p.rejected_ids[:-1]]) for p in pairs]
        width = max((len(row) for row in rows), default=0)
        if self.pad_to_max_length and pairs:
            width = self.max_length - 1
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        predictors = [
            i * width + _predictors(len(pair.prompt_ids), len(row) - len(pair.prompt_ids) + 1)
            for i, (pair, row) in enumerate(zip([*pairs, *pairs], rows, strict=True))
        ]
        positions = np.broadcast_to(np.arange(width), ids.shape)
        parts = ([ids.reshape(-1)], [positions.reshape(-1)], predictors)
        return _Layout(*parts, attention_mask=torch.from_numpy(mask))


@dataclass(slots=True)
class _Layout:
    """What the layouts differ in: ids, positions, who predicts, and who attends to whom."""

    input_ids: list[np.ndarray]
    position_ids: list[np.ndarray]
    predictors: list[np.ndarray]
    plan: AttentionPlan | None = None
    attention_mask: torch.Tensor | None = None


def _prefix_shared(pairs: Sequence[TokenizedPair]) -> _Layout:
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    chosen_predictors: list[np.ndarray] = []
    rejected_predictors: list[np.ndarray] = []
    spans: list[tuple[int, int]] = []
    start = 0
    for pair in pairs:
        prompt, chosen, rejected = map(len, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))
        assert prompt > 0, f"{pair.source}: the prompt has no token to predict from"
        ids += [pair.prompt_ids, pair.chosen_ids[:-1], pair.rejected_ids[:-1]]
        positions += [np.arange(prompt + chosen - 1), np.arange(prompt, prompt + rejected - 1)]
        chosen_predictors.append(start + _predictors(prompt, chosen))
        # The first rejected token is predicted by the prompt's end, the rest by its own tokens.
        rest = start + prompt + chosen - 1 + np.arange(rejected - 1)
        rejected_predictors += [np.array([start + prompt - 1]), rest]
        spans.append((prompt + chosen - 1, 0))
        if rejected > 1:
            spans.append((rejected - 1, prompt))
        start += prompt + chosen + rejected - 2
    return _Layout(ids, positions, chosen_predictors + rejected_predictors, _plan(spans))


def _packed(pairs: Sequence[TokenizedPair]) -> _Layout:
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    predictors: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    spans: list[tuple[int, int]] = []
    start = 0
    for pair in pairs:
        assert len(pair.prompt_ids) > 0, f"{pair.source}: the prompt has no token to predict from"
        for side, completion in enumerate((pair.chosen_ids, pair.rejected_ids)):
            length = len(pair.prompt_ids) + len(completion) - 1
            ids += [pair.prompt_ids, completion[:-1]]
            positions.append(np.arange(length))
            predictors[side].append(start + _predictors(len(pair.prompt_ids), len(completion)))
            spans.append((length, 0))
            start += length
    return _Layout(ids, positions, predictors[0] + predictors[1], _plan(spans))


def _predictors(prompt: int, completion: int) -> np.ndarray:
    """Offsets of the tokens that predict a completion which follows its prompt directly."""
    return np.arange(prompt - 1, prompt + completion - 1)


def _plan(spans: Sequence[tuple[int, int]]) -> AttentionPlan:
    """Attention plan of consecutive (tokens, borrowed keys) spans."""
    queries = [length for length, _ in spans]
    starts = np.cumsum([0, *queries])
    key_index: list[np.ndarray] = []
    for i, (length, borrowed) in enumerate(spans):
        span = np.arange(starts[i], starts[i] + length)
        key_index.append(np.concatenate([key_index[-1][:borrowed], span]) if borrowed else span)
    keys = np.cumsum([0, *(len(index) for index in key_index)])
    return AttentionPlan(
        query_lengths=tuple(queries),
        borrowed=tuple(borrowed for _, borrowed in spans),
        key_index=_long(key_index),
        query_offsets=torch.from_numpy(starts.astype(np.int32)),
        key_offsets=torch.from_numpy(keys.astype(np.int32)),
    )


def _reference_logps(pairs: Sequence[TokenizedPair]) -> torch.Tensor | None:
    references = [pair.reference_logps for pair in pairs if pair.reference_logps is not None]
    if not references or len(references) < len(pairs):
        return None
    chosen = [logps[: len(pair.chosen_ids)] for pair, logps in zip(pairs, references, strict=True)]
    rejected = [
        logps[len(pair.chosen_ids) :] for pair, logps in zip(pairs, references, strict=True)
    ]
    return torch.from_numpy(np.concatenate(chosen + rejected).astype(np.float32))


def _long(parts: Sequence[np.ndarray]) -> torch.Tensor:
    if not parts:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
