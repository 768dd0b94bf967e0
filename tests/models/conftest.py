"""Tiny models, files and tokenizers for the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from minimind_dpo.batch import AttentionPlan

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}


def v2_state(layers: int = 2, hidden: int = 16, vocab: int = 40) -> dict[str, Tensor]:
    """A MiniMind2 file of 4 query and 1 key-value heads (the ratio of the real ones)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for index in range(layers):
        layer = f"model.layers.{index}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}self_attn.k_proj.weight": (hidden // 4, hidden),
            f"{layer}self_attn.v_proj.weight": (hidden // 4, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (24, hidden),
            f"{layer}mlp.up_proj.weight": (24, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, 24),
        }
    shapes["model.norm.weight"] = (hidden,)
    state = random_state(shapes)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


@pytest.fixture
def v2_file(tmp_path: Path) -> Path:
    """A healthy native file, small enough to damage in many ways; 4 heads."""
    path = tmp_path / "full_sft_16.pth"
    torch.save(v2_state(), path)
    return path


def plan_of(lengths: tuple[int, ...], borrowed: tuple[int, ...]) -> AttentionPlan:
    """Plan of sequences that own `lengths` tokens and borrow keys from the one before."""
    starts = [sum(lengths[:index]) for index in range(len(lengths))]
    keys: list[list[int]] = []
    for start, length, share in zip(starts, lengths, borrowed, strict=True):
        keys.append([*(keys[-1][:share] if keys else []), *range(start, start + length)])
    offsets = [
        torch.tensor([sum(sizes[:index]) for index in range(len(sizes) + 1)], dtype=torch.int32)
        for sizes in (list(lengths), [len(part) for part in keys])
    ]
    index = torch.tensor([key for part in keys for key in part])
    return AttentionPlan(lengths, borrowed, index, offsets[0], offsets[1])


def tiny_tokenizer(words: int = 30) -> PreTrainedTokenizerFast:
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate(specials)}
    for word in ["user", "assistant", *(f"w{n}" for n in range(words - 5))]:
        vocabulary[word] = len(vocabulary)
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )
