"""Every layout gives the log-probs and gradients of separate plain forwards, on every family."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import transformers as tf
from torch import Tensor

from minimind_dpo.batch import TokenizedPair, Window
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention import cpu_blocks as block_attention
from minimind_dpo.models.attention import planned as attention
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.objective.logps import sequence_logps

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GEMMA = {"head_dim": 8, "sliding_window": 5}

FAMILIES: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
    "qwen3_moe": lambda: tf.Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8, norm_topk_prob=True),
    "granite": lambda: tf.GraniteConfig(**SMALL, logits_scaling=3.0, attention_multiplier=0.3),
    "gemma2": lambda: tf.Gemma2Config(**SMALL, **GEMMA, final_logit_softcapping=3.0),
    "gemma3": lambda: tf.Gemma3TextConfig(**SMALL, **GEMMA),
    "mistral_windowed": lambda: tf.MistralConfig(**SMALL, sliding_window=6),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "smollm3": lambda: tf.SmolLM3Config(**SMALL),
    "olmo2": lambda: tf.Olmo2Config(**SMALL),
    "cohere": lambda: tf.CohereConfig(**SMALL, logit_scale=0.25),
    "gpt2": lambda: tf.GPT2Config(**GPT, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**{**SMALL, "num_key_value_heads": 4}),
    "opt": lambda: tf.OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0),
    "ernie4_5": lambda: tf.Ernie4_5Config(**SMALL),
    "phi_head_bias": lambda: tf.PhiConfig(**SMALL),
}


def make_model(family: str, dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).train()


def make_pairs(seed: int = 0) -> list[TokenizedPair]:
    """Four pairs: ordinary, a one-token rejected side, a one-token prompt, a long prompt."""
    generator = np.random.default_rng(seed)
    shapes = [(5, 7, 4), (3, 6, 1), (1, 2, 9), (12, 3, 5)]
    return [
        TokenizedPair(*(generator.integers(3, 61, n).astype(np.int32) for n in shape), index=i)
        for i, shape in enumerate(shapes)
    ]


def plain_logps(model: tf.PreTrainedModel, pairs: list[TokenizedPair]) -> Tensor:
    """Per-token log-probs by one ordinary forward per sequence: the plainest way there is."""
    rows = []
    for side in ("chosen_ids", "rejected_ids"):
        for pair in pairs:
            completion = getattr(pair, side)
            ids = torch.from_numpy(np.concatenate([pair.prompt_ids, completion])).long()
            logits = model(input_ids=ids[None]).logits[0]
            logps = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
            rows.append(logps[-len(completion) :])
    return torch.cat(rows)


def gradients(model: tf.PreTrainedModel, logps: Tensor) -> dict[str, Tensor]:
    """Gradient of a loss that weighs every token differently."""
    model.zero_grad()
    (logps * torch.linspace(-1, 1, len(logps), dtype=logps.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(
    got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    assert got.keys() == expected.keys()
    scale = max(float(g.norm()) for g in expected.values())
    for name, gradient in expected.items():
        error = float((got[name] - gradient).norm())
        # A key bias has no gradient in theory, so small ones are compared absolutely.
        assert error <= tolerance * max(float(gradient.norm()), 1e-3 * scale), (name, error)


@pytest.mark.parametrize("layout", ["prefix_shared", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_queries_equal_separate_plain_forwards(
    family: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long sequences take this way on a CPU; here short ones do too, two to four queries a block.
    monkeypatch.setattr(attention, "LONG", 0)
    monkeypatch.setattr(block_attention, "BLOCK_ROWS", 4)
    test_layout_equals_separate_plain_forwards(family, layout)


@pytest.mark.parametrize("layout", ["prefix_shared", "packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_layout_equals_separate_plain_forwards(family: str, layout: str) -> None:
    # Grouped expert kernels have no float64; the eager mask overflows its float32 softmax.
    exact = family != "qwen3_moe" and (family, layout) != ("gemma2", "padded")
    model = make_model(family, torch.float64 if exact else torch.float32)
    pairs = make_pairs()
    use_planned_attention(model, False)
    expected = plain_logps(model, pairs)
    expected_gradients = gradients(model, expected)

    use_planned_attention(model, layout != "padded")
    batch = Collator(layout, max_length=64)(pairs)
    got = sequence_logps(model, batch)

    # Rotary tables and some norms are float32 inside the models, whatever the weights are.
    tolerance = 1e-6 if exact else 1e-5
    torch.testing.assert_close(got.token_logps, expected, atol=tolerance * 10, rtol=tolerance)
    assert_same_gradients(gradients(model, got.token_logps), expected_gradients, tolerance * 10)


@pytest.mark.parametrize("layout", ["prefix_shared", "packed", "padded"])
def test_a_pair_does_not_depend_on_its_neighbours(layout: str) -> None:
    model = make_model("qwen3", torch.float64)
    use_planned_attention(model, layout != "padded")
    pairs, collate = make_pairs(), Collator(layout, max_length=64)
    together = sequence_logps(model, collate(pairs)).sums
    for i, pair in enumerate(pairs):
        alone = sequence_logps(model, collate([pair])).sums
        torch.testing.assert_close(alone, together[[i, i + len(pairs)]], atol=1e-9, rtol=1e-9)


def test_tokens_of_a_layout_are_what_the_batch_holds() -> None:
    pairs = make_pairs()
    lengths = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs])
    for layout in ("prefix_shared", "packed"):
        collate = Collator(layout)
        assert collate(pairs).input_ids.numel() == collate.tokens(lengths).sum()
    # 5+7+4, 3+6+1, 1+2+9, 12+3+5 tokens, less the two last ones of each pair.
    assert Collator("prefix_shared").tokens(lengths).tolist() == [14, 8, 10, 18]
    assert Collator("packed").tokens(lengths).tolist() == [19, 11, 11, 30]


def test_an_empty_batch_is_laid_out_in_every_layout() -> None:
    for layout in ("prefix_shared", "packed", "padded"):
        batch = Collator(layout)([], Window(3, 20))
        assert (batch.num_pairs, batch.num_tokens, batch.window.pairs) == (0, 0, 3)
