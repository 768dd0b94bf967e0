"""Score laid-out tokens with a model that attends the way they are laid out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import torch
from transformers import PreTrainedModel

from minimind_dpo.batch import PreferenceBatch, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.objective.logps import AuxLoss, PairLogps, sequence_logps

BATCH_TOKENS: Final = 16384
"""Of a forward pass without gradients, where neither the user nor a GPU's memory says more."""


def score(
    model: PreTrainedModel,
    batch: PreferenceBatch,
    *,
    statistics: bool = False,
    aux_loss: AuxLoss | None = None,
) -> PairLogps:
    """`sequence_logps`, after switching the model's attention to what the batch needs.

    A packed batch run with a model's plain attention would let every pair see the others, without
    an error; so no caller is trusted to have switched it.
    """
    use_planned_attention(model, batch.plan is not None)
    return sequence_logps(model, batch, statistics=statistics, aux_loss=aux_loss)


def begin_scoring(
    model: PreTrainedModel,
    pairs: Sequence[TokenizedPair],
    collate: Collator,
    *,
    device: torch.device,
    precision_context: Callable[[], contextlib.AbstractContextManager[object]],
) -> Callable[[], list[np.ndarray]]:
    """Start to score some pairs; on CUDA nothing is waited for here.

    Returns:
        What waits for the log-probs: float32 (chosen + rejected length,) a pair, chosen first.
    """
    batch, on_cuda = collate(pairs), device.type == "cuda"
    batch = (batch.pin_memory() if on_cuda else batch).to(device, non_blocking=on_cuda)
    with torch.inference_mode(), precision_context():
        # Into page-locked memory, so that the device goes on.
        logps = score(model, batch).token_logps.float().to("cpu", non_blocking=on_cuda)
    copied = torch.cuda.Event() if on_cuda else None
    if copied is not None:
        copied.record()

    def finish() -> list[np.ndarray]:
        if copied is not None:
            copied.synchronize()
        return _by_pair(logps.numpy(), pairs)

    return finish


def one_behind(
    parts: Iterable[np.ndarray], begin: Callable[[np.ndarray], Callable[[], list[np.ndarray]]]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Each part and what was begun for it, read once the next part has been begun."""
    begun: tuple[np.ndarray, Callable[[], list[np.ndarray]]] | None = None
    for part in parts:
        following = part, begin(part)
        if begun is not None:
            yield begun[0], begun[1]()
        begun = following
    if begun is not None:
        yield begun[0], begun[1]()


def _by_pair(logps: np.ndarray, pairs: Sequence[TokenizedPair]) -> list[np.ndarray]:
    chosen = np.cumsum([0, *(len(pair.chosen_ids) for pair in pairs)])
    rejected = chosen[-1] + np.cumsum([0, *(len(pair.rejected_ids) for pair in pairs)])
    return [
        np.concatenate([logps[chosen[i] : chosen[i + 1]], logps[rejected[i] : rejected[i + 1]]])
        for i in range(len(pairs))
    ]


def token_batches(rows: np.ndarray, tokens: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut rows into batches of at most `budget` tokens, similar lengths together.

    Args:
        rows: int (n,) rows of a store.
        tokens: int (n,) tokens of each.
        budget: Most tokens of a batch; a longer single pair goes alone.
    """
    order = np.argsort(tokens, kind="stable")[::-1]
    start = 0
    load = 0
    for i, position in enumerate(order):
        if i > start and load + tokens[position] > budget:
            yield rows[order[start:i]]
            start, load = i, 0
        load += int(tokens[position])
    if start < len(order):
        yield rows[order[start:]]


def pair_batches(
    pairs: Sequence[TokenizedPair], collate: Collator, budget: int
) -> Iterator[tuple[np.ndarray, PreferenceBatch]]:
    """Batches of at most `budget` tokens: places (P,) of the pairs in `pairs`, and the batch."""
    lengths = [[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs]
    tokens = collate.tokens(np.array(lengths).reshape(-1, 3))
    for places in token_batches(np.arange(len(pairs)), tokens, budget):
        yield places, collate([pairs[place] for place in places.tolist()])


def single(prompt_ids: np.ndarray, completion_ids: np.ndarray) -> TokenizedPair:
    """One completion as a pair, so that it is laid out and scored like any other.

    Its rejected side is the completion's first token: the prompt predicts that already, so with a
    shared prompt no token is run for it.
    """
    return TokenizedPair(prompt_ids, completion_ids, completion_ids[:1], index=0)


def prompt_groups(pairs: Sequence[TokenizedPair]) -> np.ndarray:
    """int64 (pairs,): a number for each prompt, by which pairs of one prompt are known."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(p.prompt_ids.tobytes(), len(numbers)) for p in pairs])


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode for a while, then the mode that was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextlib.contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients inside; modes and attention as they were after."""
    modes = [(module, module.training) for module in model.modules()]
    attention = model.config._attn_implementation
    model.eval()
    # A compiled policy would compile once more for every length.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            model.set_attn_implementation(attention)
