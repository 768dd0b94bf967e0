"""Keys and tensors of a native file to those of its transformers class, and back, exactly.

A `Rule` makes one transformers tensor from one or more native ones and takes it apart again; both
directions only move numbers, so a float32 file comes back bit for bit. Apart from renaming:

- v_learn, v1 and v2a rotate the pairs (0, 1), (2, 3), ...; Llama rotates (0, d/2), (1, d/2 + 1),
  ... Reordering the rows of q and k within each head makes them the same function.
- Experts are stacked, gate above up; shared experts are laid side by side as one wider one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.minimind.architecture import TIE
from minimind_dpo.models.minimind.generations import Generation
from minimind_dpo.models.minimind.recognise import Dialect


@dataclass(frozen=True, slots=True)
class Rule:
    """One tensor of the transformers model and the native tensors it is made of."""

    target: str
    sources: tuple[str, ...]
    join: Callable[[list[Tensor]], Tensor] = lambda parts: parts[0]
    split: Callable[[Tensor], list[Tensor]] = lambda whole: [whole]


def rules(generation: Generation, moe: bool, fields: Mapping[str, Any]) -> Iterator[Rule]:
    """All rules of a dialect; the tied head and v_learn's masks are not tensors of the model."""
    names = generation.names
    yield Rule("model.embed_tokens.weight", (names.embedding,))
    yield Rule("model.norm.weight", (names.norm,))
    if not is_tied(generation, fields):
        for kind in _kinds(generation):
            yield Rule(f"lm_head.{kind}", (names.head.replace("weight", kind),))
    for index in range(fields["num_hidden_layers"]):
        source, target = f"{names.layers}{index}.", f"model.layers.{index}."
        yield from _attention(generation, fields, source, target)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            native = f"{source}{names.parts[norm]}.{names.norm_weight}"
            yield Rule(f"{target}{norm}.weight", (native,))
        if moe:
            yield from _experts(generation, fields, source, target)
        else:
            for part in ("gate_proj", "up_proj", "down_proj"):
                for kind in _kinds(generation):
                    native = f"{source}{names.mlp}.{names.parts[part]}.{kind}"
                    yield Rule(f"{target}mlp.{part}.{kind}", (native,))


def _kinds(generation: Generation) -> tuple[str, ...]:
    return ("weight", "bias") if generation.names.bias else ("weight",)


def _attention(
    generation: Generation, fields: Mapping[str, Any], source: str, target: str
) -> Iterator[Rule]:
    names = generation.names
    source, target = f"{source}{names.attention}.", f"{target}self_attn."
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        for kind in _kinds(generation):
            rule = Rule(f"{target}{part}.{kind}", (f"{source}{names.parts[part]}.{kind}",))
            if generation.interleaved and part in ("q_proj", "k_proj"):
                rule = _paired(rule, fields["head_dim"])
            yield rule
    if generation.name == "v3":
        for norm in ("q_norm.weight", "k_norm.weight"):
            yield Rule(target + norm, (source + norm,))


def _paired(rule: Rule, head_dim: int) -> Rule:
    def join(parts: list[Tensor]) -> Tensor:
        rows = parts[0].unflatten(0, (-1, head_dim // 2, 2))
        return rows.transpose(1, 2).flatten(0, 2)

    def split(whole: Tensor) -> list[Tensor]:
        rows = whole.unflatten(0, (-1, 2, head_dim // 2))
        return [rows.transpose(1, 2).flatten(0, 2)]

    return Rule(rule.target, rule.sources, join, split)


def _experts(
    generation: Generation, fields: Mapping[str, Any], source: str, target: str
) -> Iterator[Rule]:
    names = generation.names
    source = f"{source}{names.mlp}."
    ours = "mlp.experts." if generation.name == "v3" else "block_sparse_moe.experts."
    router = "mlp.gate.weight" if generation.name == "v3" else "block_sparse_moe.router.weight"
    yield Rule(target + router, (source + "gate.weight",))
    if fields.get("fused_experts"):
        for whole in ("gate_up_proj", "down_proj"):
            yield Rule(f"{target}{ours}{whole}", (f"{source}experts.{whole}",))
        return
    experts = [f"{source}experts.{n}." for n in range(fields["num_experts"])]
    gate, up, down = (
        f"{names.parts[part]}.weight" for part in ("gate_proj", "up_proj", "down_proj")
    )
    gates_ups = tuple(expert + part for expert in experts for part in (gate, up))
    yield Rule(f"{target}{ours}gate_up_proj", gates_ups, _stack_pairs, _unstack_pairs)
    downs = tuple(expert + down for expert in experts)
    yield Rule(f"{target}{ours}down_proj", downs, torch.stack, lambda whole: list(whole.unbind()))
    shared = [
        f"{source}{names.shared.format(n=n)}." for n in range(fields.get("n_shared_experts", 0))
    ]
    if shared:
        sides = tuple(expert + part for part in (gate, up) for expert in shared)
        yield _side_by_side(f"{target}shared_mlp.input_linear.weight", sides, dim=0)
        downs = tuple(expert + down for expert in shared)
        yield _side_by_side(f"{target}shared_mlp.output_linear.weight", downs, dim=1)


def _stack_pairs(parts: list[Tensor]) -> Tensor:
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return torch.stack([torch.cat(pair) for pair in pairs])


def _unstack_pairs(whole: Tensor) -> list[Tensor]:
    return [half for expert in whole.unbind() for half in expert.chunk(2)]


def _side_by_side(target: str, sources: tuple[str, ...], dim: int) -> Rule:
    return Rule(
        target,
        sources,
        lambda parts: torch.cat(parts, dim=dim),
        lambda whole: list(whole.chunk(len(sources), dim=dim)),
    )


def is_mask(key: str) -> bool:
    """Whether a key is one of v_learn's stored causal masks."""
    return key.endswith(".attention.mask")


def causal_mask(size: int, fill: float, dtype: torch.dtype) -> Tensor:
    """v_learn's stored mask: (1, 1, size, size), 0 where seen and `fill` above the diagonal."""
    return torch.full((1, 1, size, size), fill).triu(1).to(dtype)


def check_whole(
    state: Mapping[str, Tensor],
    generation: Generation,
    moe: bool,
    fields: Mapping[str, Any],
) -> None:
    """Refuse a native file that does not hold exactly one model of its dialect."""
    expected = {source for rule in rules(generation, moe, fields) for source in rule.sources}
    extra = {key for key in state if not is_mask(key)} - expected
    if is_tied(generation, fields):
        extra.discard(generation.names.head)
    missing = expected - state.keys()
    if missing or extra:
        raise CheckpointError(
            f"read as {generation.name}, but "
            + " and ".join(
                f"{len(keys)} key(s) are {what}: {', '.join(key[:100] for key in sorted(keys)[:5])}"
                for keys, what in ((missing, "missing"), (extra, "left over"))
                if keys
            )
            + ". A file must hold one whole model and nothing else"
        )


def is_tied(generation: Generation, fields: Mapping[str, Any]) -> bool:
    """Whether embedding and head are one tensor."""
    return bool(fields.get(TIE, generation.tied))


def resolve_tie(
    generation: Generation, fields: dict[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Fill in whether embedding and head are one tensor: v3 can have a head of its own.

    Raises:
        CheckpointError: They differ where they are said to be one, or the head is missing.
    """
    names = generation.names
    head, embedding = state.get(names.head), state.get(names.embedding)
    if not generation.tied or embedding is None:
        return
    alike = head is None or (head.dtype == embedding.dtype and torch.equal(head, embedding))
    tied = fields.setdefault(TIE, alike or generation.name != "v3")
    if tied and not alike:
        raise CheckpointError(
            f"{names.head} and {names.embedding} differ, but {generation.name} ties them: "
            "they are one tensor. The file is not of this generation"
        )
    if not tied and head is None:
        raise CheckpointError(f"{TIE}=false, but {names.head} is missing")


def to_transformers(
    state: Mapping[str, Tensor],
    generation: Generation,
    moe: bool,
    fields: Mapping[str, Any],
) -> dict[str, Tensor]:
    """State dict of the transformers model from that of a native file, which is whole.

    Raises:
        CheckpointError: Parts do not fit each other.
    """
    result = {}
    for rule in rules(generation, moe, fields):
        try:
            result[rule.target] = rule.join([state[source] for source in rule.sources])
        except RuntimeError as error:
            shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in rule.sources[:4])
            raise CheckpointError(f"tensors do not fit together: {shapes}") from error
    return result


def to_native(
    state: Mapping[str, Tensor], dialect: Dialect, dtype: torch.dtype
) -> dict[str, Tensor]:
    """State dict of the native file from that of the transformers model: same keys, same order.

    Args:
        state: State dict of the transformers model.
        dialect: As loaded; not `hf`.
        dtype: Number format to write.

    Raises:
        CheckpointError: The dialect has no native file, or the model is not of this dialect.
    """
    generation = dialect.generation
    if generation is None:
        raise CheckpointError(
            "a model that came as a Hugging Face folder has no native MiniMind file; export it "
            "as a Hugging Face folder"
        )
    native: dict[str, Tensor] = {}
    for rule in rules(generation, dialect.moe, dialect.fields):
        if rule.target not in state:
            raise CheckpointError(
                f"the model lacks {rule.target}, so it is not the {dialect.name} that was loaded"
            )
        native |= zip(rule.sources, rule.split(state[rule.target]), strict=True)
    if is_tied(generation, dialect.fields):
        native[generation.names.head] = native[generation.names.embedding]
    size = dialect.fields["max_position_embeddings"]
    result = {}
    for key in dialect.keys:
        if is_mask(key):
            tensor = causal_mask(size, dialect.mask_fill, dtype)
        else:
            tensor = native[key].detach().to("cpu", dtype, copy=True).contiguous()
        result[dialect.prefix + key] = tensor
    return result
