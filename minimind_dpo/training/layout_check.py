"""Prove, as a model is loaded, that it scores pairs in the asked layout as it would alone.

A few made-up pairs go through the model the plain way, one sequence at a time with all logits, and
through the layout. Linear attention, state-space layers, masks of a model's own or a head that is
more than a linear layer would otherwise give wrong numbers without a word. Where the configuration
names a length at which attention changes (a sliding window, a chunk), one pair is longer than it.

How much may differ is measured on the model itself, where it is and in the precision around:
rounding is imitated by moving the output of every layer by one unit of its last place, and no
layout may move a log-prob much further.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.evaluation.scoring import evaluating, score
from minimind_dpo.models.attention.planned import plain_attention
from minimind_dpo.models.errors import CheckpointError

TIMES_ROUNDING = 8.0
"""Largest difference allowed, in multiples of what rounding moves. Over 22 architectures and four
scales of weights a right layout is at 0.2 to 2; a wrong mask or position is above 1,000."""

_SHAPES = ((9, 6, 4), (3, 5, 12))
"""Tokens of prompt, chosen and rejected of the pairs."""

_MANY_SHAPES = ((16, 12, 12),) * 8
"""The same where train mode draws random numbers, which may touch few tokens."""

_BEYOND = 16
"""Tokens by which a text is longer than a length that the configuration names."""

_LENGTH_NAME = re.compile(
    r"(windows?|window_size|chunk_size|local_attention|original_max_position_embeddings)$"
)
"""Fields of a configuration that are lengths, in tokens, at which attention changes."""

_PRODUCTS = {"highest": torch.float32, "high": torch.float16, "medium": torch.bfloat16}
"""What float32 products round their factors to, by `torch.get_float32_matmul_precision`: TF32 has
the 10 bits of float16."""

_NOISE_NAME = re.compile("jitter|noise|drop")
"""Fields of a configuration that make a model noisy in train mode."""


class _Text(NamedTuple):
    """Pairs that a layout is tried on.

    Attributes:
        pairs: N scored tokens in all.
        logps: (N,) by plain forwards, chosen of all pairs first, in nats.
        tolerance: Largest difference from them that rounding explains, in nats.
        beyond: What the text is longer than, `sliding_window=64`; empty for short pairs.
    """

    pairs: list[TokenizedPair]
    logps: Tensor
    tolerance: float
    beyond: str


def check_layout(
    model: PreTrainedModel, layout: str, *, max_length: int = 1024, noise: bool = False
) -> None:
    """Compare a layout with plain forwards of the same model, and train mode with eval mode.

    Args:
        model: On any device, under autocast or not; it is left with the attention that the layout
            needs.
        layout: `prefix_shared`, `packed` or `padded`.
        max_length: Tokens of the longest sequence to be scored; longer windows do not matter.
        noise: The model is noisy in train mode on purpose (dropout).

    Raises:
        CheckpointError: They differ, or the model cannot be run in this layout at all.
    """
    problems = []
    cards = [model.device] if model.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=cards), evaluating(model):
        short = _text(model, _SHAPES)
        for text in (short, *_long_text(model, max_length)):
            if reason := _difference(model, layout, text):
                problems.append(_refusal(model, layout, text, reason))
                break
        if not noise and (reason := _noise(model, short)):
            problems.append(reason)
    if problems:
        raise CheckpointError(". ".join(problems))


def _long_text(model: PreTrainedModel, max_length: int) -> list[_Text]:
    """One pair longer than every length that is named, beside a short one; none where none is."""
    limit = min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)
    lengths = [(n, name) for name, n in _lengths("", model.config.to_dict()) if 1 < n < limit]
    if not lengths:
        return []
    length, name = max(lengths)
    completion = 5
    prompt = max(1, min(length + _BEYOND, limit) - completion)
    shapes = ((prompt, completion, completion), _SHAPES[1])
    return [_text(model, shapes, f"{name}={length}")]


def _lengths(name: str, value: Any) -> Iterator[tuple[str, int]]:
    """Whole numbers of a configuration that may be lengths at which attention changes."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _lengths(str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _lengths(name, item)
    elif type(value) is int and _LENGTH_NAME.search(name):
        yield name, value


def _text(
    model: PreTrainedModel, shapes: tuple[tuple[int, int, int], ...], beyond: str = ""
) -> _Text:
    """Pairs of fixed ids, and what plain forwards give for them with and without rounding."""
    vocabulary = int(model.get_input_embeddings().weight.size(0))  # type: ignore[operator]
    generator = np.random.default_rng(0)
    pairs = []
    for index, shape in enumerate(shapes):
        prompt, chosen, rejected = (
            generator.integers(0, vocabulary, n).astype(np.int32) for n in shape
        )
        pairs.append(TokenizedPair(prompt, chosen, rejected, index))
    logps = _plain_logps(model, pairs)
    with _rounded_otherwise(model):
        rounding = (_plain_logps(model, pairs) - logps).abs().max()
    # A model of a few exact numbers may hide all rounding but that of the log-probs themselves.
    least = torch.finfo(torch.float32).eps * logps.abs().max()
    return _Text(pairs, logps, TIMES_ROUNDING * float(torch.maximum(rounding, least)), beyond)


def _plain_logps(model: PreTrainedModel, pairs: list[TokenizedPair]) -> Tensor:
    """(N,) of all scored tokens, chosen first, by one ordinary forward a sequence."""
    rows = []
    with plain_attention(model):
        for side in ("chosen_ids", "rejected_ids"):
            for pair in pairs:
                completion = getattr(pair, side)
                ids = torch.from_numpy(np.concatenate([pair.prompt_ids, completion])).long()
                ids = ids.to(model.device)
                logits = model(input_ids=ids[None], use_cache=False).logits[0]  # (L, V)
                logits = logits[-len(completion) - 1 : -1].float()  # (completion, V)
                target = ids[-len(completion) :, None]
                rows.append(logits.log_softmax(-1).gather(1, target).squeeze(1).cpu())
    return torch.cat(rows)


@contextlib.contextmanager
def _rounded_otherwise(model: PreTrainedModel) -> Iterator[None]:
    """Move every layer's output by up to one unit of the last place, at random."""
    generator = torch.Generator().manual_seed(0)
    products = _PRODUCTS[torch.get_float32_matmul_precision()]

    def move(layer: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        # Rotary tables and some norms are float32 in float64 models too.
        eps = max(torch.finfo(dtype).eps for dtype in (output.dtype, products))
        shift = torch.rand(output.shape, generator=generator).mul_(2 * eps).sub_(eps)
        return output * (
            1 + shift.to(output.device, torch.promote_types(output.dtype, torch.float32))
        )

    handles = [
        layer.register_forward_hook(move) for layer in model.modules() if not [*layer.children()]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(model: PreTrainedModel, layout: str, text: _Text) -> str:
    """Why the layout's log-probs are not the model's own; empty where they are."""
    try:
        logps = _layout_logps(model, layout, text)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError) as error:
        return str(error).strip().rstrip(".")
    worst = float((logps - text.logps).abs().max())
    if worst <= text.tolerance:
        return ""
    return (
        f"log-probs differ from the model's own by up to {worst:.3g} nats a token, where rounding "
        f"explains {text.tolerance:.1g}"
        + (f", in a text longer than {text.beyond}" if text.beyond else "")
    )


def _layout_logps(model: PreTrainedModel, layout: str, text: _Text) -> Tensor:
    batch = Collator(layout)(text.pairs).to(model.device)
    return score(model, batch).token_logps.cpu()


def _noise(model: PreTrainedModel, text: _Text) -> str:
    """What moves log-probs in train mode; empty where nothing does."""
    worst, draws = _train_mode(model, text)
    if draws and worst <= text.tolerance:
        text = _text(model, _MANY_SHAPES)
        worst, _ = _train_mode(model, text)
    if worst <= text.tolerance:
        return ""
    sources = [
        f"model.config.{name}=0.0 (now {value})"
        for name, value in model.config.to_dict().items()
        if isinstance(value, float) and value and _NOISE_NAME.search(name)
    ]
    advice = f"Set {' '.join(sources)}" if sources else "It cannot be trained here"
    return (
        f"{type(model).__name__} scores otherwise in train mode than in eval mode, by up to "
        f"{worst:.3g} nats a token without dropout: the policy would have noise that the frozen "
        f"reference lacks. {advice}"
    )


def _train_mode(model: PreTrainedModel, text: _Text) -> tuple[float, bool]:
    """How far train mode moves a log-prob, and whether it may draw random numbers."""
    random_state = torch.get_rng_state()
    model.train()
    worst = float((_plain_logps(model, text.pairs) - text.logps).abs().max())
    model.eval()
    return worst, model.device.type != "cpu" or not torch.equal(random_state, torch.get_rng_state())


def _refusal(model: PreTrainedModel, layout: str, text: _Text, reason: str) -> str:
    message = f"{type(model).__name__} cannot be scored with data.layout={layout}: {reason}. "
    if layout == "padded":
        return message + "This model cannot be trained here"
    if other := _difference(model, "padded", text):
        return message + f"Nor with data.layout=padded: {other}. It cannot be trained here"
    return message + "Use data.layout=padded for this model"
