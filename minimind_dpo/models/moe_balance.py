"""Balance losses of mixtures of experts, each as its original computes it, over real tokens only.

With router probabilities p (softmax over E experts) and the k experts chosen for each token, f_e is
the number of times expert e was chosen. The losses before their coefficient:

    per_sequence  sum over layers, mean over sequences of  sum_e E f_e / (k n) * mean p_e   (v1, v2)
    per_batch     sum over layers of                       sum_e E f_e / n * mean p_e       (v3)
    switch        the same as per_batch, with the tokens of all layers as one set           (others)

where n counts the tokens that f and the mean run over. They descend from Switch Transformer
(arXiv:2101.03961, equations 4 to 6) and, by sequence, DeepSeekMoE (arXiv:2401.06066).

What they need from a forward pass: `output_router_logits=True`, which makes transformers return
one (tokens, experts) tensor a layer; for a packed batch the tokens are its T, for a rectangle rows
times columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.models.minimind.recognise import Dialect


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """Which tokens of a batch count, and whose they are.

    Attributes:
        token: int64 (K,), place of each counted token in the batch. A shared prompt counts once
            for each sequence that reads it, so all layouts give the same numbers.
        sequence: int64 (K,), in [0, num_sequences).
        num_sequences: Sequences.
    """

    token: Tensor
    sequence: Tensor
    num_sequences: int

    @classmethod
    def of(cls, batch: PreferenceBatch) -> TokenLayout:
        """Layout of a batch, by its plan or its mask."""
        if batch.plan is not None:
            return cls.planned(batch.plan.key_index, batch.plan.key_offsets)
        if batch.attention_mask is not None:
            return cls.rectangle(batch.attention_mask)
        raise ValueError("a batch has either a plan or an attention mask; this one has neither")

    @classmethod
    def planned(cls, key_index: Tensor, key_offsets: Tensor) -> TokenLayout:
        """From the keys (sum of lengths,) of a plan, and where each sequence's start, (S + 1,)."""
        sequences = len(key_offsets) - 1
        owner = torch.arange(sequences, device=key_index.device)
        # With a size that is known beforehand the host need not ask the device for it.
        owner = owner.repeat_interleave(key_offsets.diff(), output_size=len(key_index))
        return cls(key_index, owner, sequences)

    @classmethod
    def rectangle(cls, attention_mask: Tensor) -> TokenLayout:
        """From a mask (rows, columns), nonzero for tokens."""
        rows, columns = attention_mask.shape
        row, column = attention_mask.nonzero(as_tuple=True)
        return cls(row * columns + column, row, rows)


def router_aux_loss(
    router_logits: Sequence[Tensor], layout: TokenLayout, *, rule: str, top_k: int
) -> Tensor:
    """Balance loss of one forward pass, before its coefficient.

    Args:
        router_logits: (tokens, experts) of each layer, in the order of the batch.
        layout: Which of these tokens count.
        rule: `per_sequence`, `per_batch` or `switch`.
        top_k: Experts chosen per token.

    Returns:
        float32 scalar, 0 for no tokens.

    Raises:
        ValueError: An unknown rule, or no router logits.
    """
    if rule not in RULES:
        raise ValueError(f"unknown balance rule {rule!r}; known: {', '.join(RULES)}")
    if not router_logits:
        raise ValueError(
            "the model returned no router logits, so it has no balance loss: it is not a mixture "
            "of experts, or transformers cannot record them. Set loss.aux_coef=0"
        )
    probabilities, choices = [], []
    for logits in router_logits:
        token_logits = logits.view(-1, logits.shape[-1]).index_select(0, layout.token).float()
        p = token_logits.softmax(-1)  # (K, E)
        probabilities.append(p)
        # (K, E), 1 where chosen; the choice itself has no gradient.
        choices.append(torch.zeros_like(p).scatter_(1, p.detach().topk(top_k, dim=-1).indices, 1.0))
    return RULES[rule](probabilities, choices, layout, top_k)


def _per_sequence(
    probabilities: list[Tensor], choices: list[Tensor], layout: TokenLayout, top_k: int
) -> Tensor:
    experts = probabilities[0].shape[-1]
    empty = probabilities[0].new_zeros(layout.num_sequences, experts)
    lengths = empty[:, 0].index_add(0, layout.sequence, torch.ones_like(probabilities[0][:, 0]))
    total = probabilities[0].new_zeros(())
    for p, choice in zip(probabilities, choices, strict=True):
        mean_p = empty.index_add(0, layout.sequence, p) / lengths.clamp(min=1)[:, None]
        load = empty.index_add(0, layout.sequence, choice) / lengths.clamp(min=1)[:, None]
        by_sequence = (load * mean_p).sum(-1) * experts / top_k
        total = total + by_sequence.sum() / (lengths > 0).sum().clamp(min=1)
    return total


def _product(p: Tensor, choice: Tensor) -> Tensor:
    tokens = max(1, p.shape[0])
    return p.shape[-1] * (choice.sum(0) / tokens * p.sum(0) / tokens).sum()


def _per_batch(
    probabilities: list[Tensor], choices: list[Tensor], layout: TokenLayout, top_k: int
) -> Tensor:
    layers = [_product(p, c) for p, c in zip(probabilities, choices, strict=True)]
    return torch.stack(layers).sum()


def _switch(
    probabilities: list[Tensor], choices: list[Tensor], layout: TokenLayout, top_k: int
) -> Tensor:
    return _product(torch.cat(probabilities), torch.cat(choices))


RULES: dict[str, Callable[[list[Tensor], list[Tensor], TokenLayout, int], Tensor]] = {
    "per_sequence": _per_sequence,
    "per_batch": _per_batch,
    "switch": _switch,
}


def balance_loss(
    dialect: Dialect, config: PreTrainedConfig
) -> Callable[[tuple[Tensor, ...], PreferenceBatch], Tensor] | None:
    """The balance loss of a loaded model, ready to be applied to a batch; None for a dense model.

    Args:
        dialect: As loaded.
        config: The model's configuration.

    Returns:
        A function of router logits, one (tokens, experts) a layer, and the batch; its result is
        to be multiplied by `loss.aux_coef`.
    """
    top_k = getattr(config, "num_experts_per_tok", None)
    generation = dialect.generation
    if top_k is None or (generation is not None and not dialect.moe):
        return None
    rule = "switch" if generation is None else generation.aux[0]

    def apply(router_logits: tuple[Tensor, ...], batch: PreferenceBatch) -> Tensor:
        return router_aux_loss(router_logits, TokenLayout.of(batch), rule=rule, top_k=top_k)

    return apply


def default_aux_coef(dialect: Dialect, config: PreTrainedConfig) -> float:
    """What the original's DPO script weighted the balance loss with.

    v1 and v2: 0, it was left out; v3: its router coefficient, 5e-4; others: what their
    configuration asks for (`output_router_logits` and `router_aux_loss_coef`).
    """
    generation = dialect.generation
    if generation is None:
        adds_loss = getattr(config, "output_router_logits", False)
        return float(getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if adds_loss else 0.0
    if not dialect.moe:
        return 0.0
    return float(dialect.fields.get("router_aux_loss_coef", generation.aux[1]))
