"""Plan whole optimizer steps ahead, so that every pair of a step weighs the same.

An epoch is cut into windows of pairs_per_window pairs, one optimizer step each. A window's pairs
are spread over its world_size x accumulate micro-batches so that each holds about the same number
of tokens (longest pair first, into the lightest micro-batch). The plan is a pure function of
(seed, epoch, lengths): every rank computes the whole of it and runs its own part, the numbers of
micro-batches are equal on all ranks and in all epochs, and no order depends on a worker or a
device.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from minimind_dpo.batch import Window


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass of one rank.

    Attributes:
        rows: Rows of the token store; may be empty where a cut window has no pair left.
        window: What the optimizer step it belongs to holds, over all ranks.
    """

    rows: tuple[int, ...]
    window: Window


@dataclass(frozen=True, slots=True)
class StepShape:
    """How the pairs of one optimizer step are spread.

    Attributes:
        batch_size: Pairs per device per micro-batch, on average over a window.
        accumulate: Micro-batches per rank per step.
        world_size: Ranks.
    """

    batch_size: int
    accumulate: int = 1
    world_size: int = 1

    @property
    def pairs_per_step(self) -> int:
        """Pairs of a whole optimizer step."""
        return self.batch_size * self.accumulate * self.world_size


class StepSampler(Sampler[MicroBatch]):
    """The micro-batches of one rank, epoch by epoch.

    Args:
        rows: int (n,) rows of the token store to visit each epoch.
        tokens: int (n,) tokens each of them costs; decides the balance only.
        chosen_lengths: int (n,) scored tokens of each chosen side, which likelihood terms divide
            by; all 1 where None.
        shape: How a step is spread.
        rank: Which rank's part to yield.
        seed: Seed of the order, the same on all ranks.
        shuffle: New order each epoch; else the rows' own order.
        drop_last: Leave out the window that the end of the data cuts short.
        limit: At most this many micro-batches per rank an epoch (`trainer.limit_train_batches`);
            the step it cuts is divided by the pairs it really holds.
    """

    def __init__(
        self,
        rows: np.ndarray,
        tokens: np.ndarray,
        shape: StepShape,
        *,
        chosen_lengths: np.ndarray | None = None,
        rank: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        limit: int | None = None,
    ) -> None:
        self.rows = np.asarray(rows, dtype=np.int64)
        self.tokens = np.asarray(tokens, dtype=np.int64)
        if chosen_lengths is None:
            chosen_lengths = np.ones_like(self.tokens)
        self.chosen_lengths = np.asarray(chosen_lengths, dtype=np.int64)
        self.shape = shape
        self.rank = rank
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.limit = limit
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def start_at(self, batch: int) -> None:
        """Begin at this micro-batch, until another epoch is set (exact resume)."""
        self.start = batch

    @property
    def whole(self) -> int:
        """Micro-batches of an epoch without the limit."""
        windows, rest = divmod(len(self.rows), self.shape.pairs_per_step)
        total = windows * self.shape.accumulate
        if rest and not self.drop_last:
            total += math.ceil(rest / (self.shape.batch_size * self.shape.world_size))
        return total

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch, a cut one counted."""
        return math.ceil(len(self) / self.shape.accumulate)

    def __len__(self) -> int:
        return self.whole if self.limit is None else min(self.whole, self.limit)

    def __iter__(self) -> Iterator[MicroBatch]:
        # NOTE: iterating must not use up the start: a DataLoader with workers makes two iterators
        # of which it reads one, and Lightning makes one that it may not read at all. Nor may this
        # be a generator, which would read epoch and start only when it is first advanced.
        return iter(self.plan(self.epoch)[self.rank][self.start :])

    def plan(self, epoch: int) -> list[list[MicroBatch]]:
        """Micro-batches of every rank, [rank][micro-batch], for one epoch."""
        order = np.arange(len(self.rows))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        ranks: list[list[MicroBatch]] = [[] for _ in range(self.shape.world_size)]
        left = len(self)
        for begin in range(0, len(order), self.shape.pairs_per_step):
            if left <= 0:
                break
            window = self._window(order[begin : begin + self.shape.pairs_per_step], left)
            for rank, micro_batches in zip(ranks, window, strict=True):
                rank.extend(micro_batches)
            left -= len(window[0])
        return ranks

    def visited(self, epochs: int | None, steps: int | None = None) -> np.ndarray:
        """Sorted rows that a run visits on any rank.

        Args:
            epochs: How many epochs it may take; None for no bound.
            steps: How many optimizer steps it may take in all; None for no bound.
        """
        an_epoch = self.steps
        whole = self.limit is None and not self.drop_last
        if (whole and (steps is None or steps >= an_epoch)) or epochs is steps is None:
            return np.sort(self.rows)
        bounds = (steps, None if epochs is None else an_epoch * epochs)
        left = min((bound for bound in bounds if bound is not None), default=0)
        rows: set[int] = set()
        for epoch in range(math.ceil(left / max(an_epoch, 1))):
            for rank in self.plan(epoch):
                for micro_batch in rank[: left * self.shape.accumulate]:
                    rows.update(micro_batch.rows)
            left -= an_epoch
        return np.array(sorted(rows), dtype=np.int64)

    def largest(self) -> int:
        """Most tokens of a micro-batch of the first epoch, on any rank."""
        cost = dict(zip(self.rows.tolist(), self.tokens.tolist(), strict=True))
        batches = (batch for rank in self.plan(0) for batch in rank)
        return max((sum(cost[row] for row in batch.rows) for batch in batches), default=0)

    def _window(self, positions: np.ndarray, limit: int) -> list[list[MicroBatch]]:
        """Spread one window: [rank][micro-batch], at most `limit` micro-batches a rank."""
        ranks = self.shape.world_size
        per_rank = math.ceil(len(positions) / (self.shape.batch_size * ranks))
        bins = _balance(self.tokens[positions], ranks * per_rank)
        # Bin b is micro-batch b // ranks of rank b % ranks.
        filled = bins[: ranks * min(per_rank, limit)]
        held = positions[np.concatenate(filled)]
        window = Window(len(held), int(self.chosen_lengths[held].sum()))
        micro_batches = [
            MicroBatch(tuple(self.rows[positions[members]].tolist()), window) for members in filled
        ]
        return [micro_batches[rank::ranks] for rank in range(ranks)]


def _balance(tokens: np.ndarray, count: int) -> list[np.ndarray]:
    """Positions 0..n-1 in `count` groups of about equal token sums, each in its old order."""
    if count == 1:
        return [np.arange(len(tokens))]
    groups: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, 0, group) for group in range(count)]
    for position in np.argsort(-tokens, kind="stable").tolist():
        load, size, group = heapq.heappop(heap)
        groups[group].append(position)
        heapq.heappush(heap, (load + int(tokens[position]), size + 1, group))
    return [np.array(sorted(group), dtype=np.int64) for group in groups]


def carry_over(
    micro_batches: int, old: Mapping[str, int], new: Mapping[str, int]
) -> tuple[int, bool]:
    """A position in an epoch, at the end of an optimizer step, where steps are spread otherwise.

    Args:
        micro_batches: Of the epoch, done, as the old shape counts them.
        old: `batch_size`, `accumulate`, `world_size`, and `epoch_batches`, a rank's micro-batches
            of an epoch.
        new: The same of the shape to count in.

    Returns:
        Micro-batches as the new shape counts them, and whether they end at the same pair; if not,
        it is the nearest end of a step before it.
    """
    if micro_batches >= old["epoch_batches"]:
        return new["epoch_batches"], True
    old_pairs, new_pairs = (s["batch_size"] * s["accumulate"] * s["world_size"] for s in (old, new))
    steps, rest = divmod(-(-micro_batches // old["accumulate"]) * old_pairs, new_pairs)
    return steps * new["accumulate"], rest == 0
