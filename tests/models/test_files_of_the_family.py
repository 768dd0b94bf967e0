"""Further files that MiniMind's own scripts write: taken where they are a model, else named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_support import Golden
from torch import Tensor

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import save_native
from minimind_dpo.models.load import load_model

from .conftest import tiny_tokenizer, v2_state

HEADS = {"num_attention_heads": 4}
LAYER = "model.layers.0.self_attn.q_proj"


def lora_state(rank: int = 2) -> dict[str, Tensor]:
    """Adapters of the square layers of `v2_state`, as train_lora.py saves them: half precision."""
    generator = torch.Generator().manual_seed(1)
    state = {}
    for index in range(2):
        for part in ("q_proj", "o_proj"):
            layer = f"model.layers.{index}.self_attn.{part}.lora."
            state[f"{layer}A.weight"] = torch.randn(rank, 16, generator=generator).half()
            state[f"{layer}B.weight"] = torch.randn(16, rank, generator=generator).half()
    return state


def test_a_file_to_resume_from_is_taken_for_its_model(v2_file: Path) -> None:
    content = {"model": v2_state(), "optimizer": {"state": {}}, "epoch": 1, "step": 3}
    path = v2_file.with_name("full_sft_16_resume.pth")
    torch.save({**content, "world_size": 1, "wandb_id": None}, path)
    loaded = load_model(path, config=HEADS, tokenizer=False)
    plain = load_model(v2_file, config=HEADS, tokenizer=False)
    assert loaded.dialect == plain.dialect
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor)


def test_a_v3_head_of_its_own_is_trained_and_exported_as_one(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden("v3")
    state = torch.load(g.path, weights_only=True)
    state["lm_head.weight"] = state["lm_head.weight"] * 2
    torch.save(state, tmp_path / "full_sft_64.pth")
    loaded = load_model(tmp_path / "full_sft_64.pth", tokenizer=False)
    with torch.no_grad():
        logits = loaded.model(input_ids=g.input_ids).logits
    # The head is linear and has no bias: twice the weights are twice the logits.
    assert (logits[:, g.data["positions"]] - 2 * g.logits).abs().max() < 4e-5
    model = loaded.model
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    written = save_native(model, loaded.dialect, tmp_path / "a.pth", torch.float32)
    back = torch.load(written, weights_only=True)
    assert list(back) == list(state)
    assert torch.equal(back["lm_head.weight"], 2 * back["model.embed_tokens.weight"])


def test_adapters_of_minimind_are_added_to_the_weights(v2_file: Path) -> None:
    path = v2_file.with_name("lora_identity_16.pth")
    torch.save(lora_state(), path)
    plain = load_model(v2_file, config=HEADS, tokenizer=False)
    loaded = load_model(v2_file, config=HEADS, tokenizer=False, adapters=path)
    a, b = lora_state()[f"{LAYER}.lora.A.weight"], lora_state()[f"{LAYER}.lora.B.weight"]
    before, after = (one.model.state_dict()[f"{LAYER}.weight"] for one in (plain, loaded))
    assert torch.equal(after, before + b.float() @ a.float())
    x = torch.arange(12).view(1, -1)
    module = plain.model.get_submodule(LAYER)
    for other in ("q_proj", "o_proj"):
        for index in range(2):
            layer = f"model.layers.{index}.self_attn.{other}"
            pair = [lora_state()[f"{layer}.lora.{side}.weight"].float() for side in "AB"]
            module = plain.model.get_submodule(layer)
            # As the original runs them: layer(x) + B(A(x)).
            module.register_forward_hook(
                lambda _, inputs, out, pair=pair: out + inputs[0] @ pair[0].T @ pair[1].T
            )
    with torch.no_grad():
        difference = loaded.model(x).logits - plain.model(x).logits
    assert difference.abs().max() < 1e-4
    bare = load_model(v2_file, config=HEADS, tokenizer=False, adapters=path, device="meta")
    assert bare.dialect == loaded.dialect


def test_adapters_of_a_v1_file_are_added_before_its_rows_are_reordered(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden("v1")
    state = torch.load(g.path, weights_only=True)
    layer = "layers.0.attention.wq"
    a, b = torch.randn(2, 64), torch.randn(64, 2)
    torch.save({f"{layer}.lora.A.weight": a, f"{layer}.lora.B.weight": b}, tmp_path / "lora.pth")
    state[f"{layer}.weight"] = state[f"{layer}.weight"].float() + b @ a
    torch.save(state, tmp_path / "merged.pth")
    added = load_model(g.path, False, g.config, adapters=tmp_path / "lora.pth").model
    merged = load_model(tmp_path / "merged.pth", False, g.config).model
    with torch.no_grad():
        assert torch.equal(added(g.input_ids).logits, merged(g.input_ids).logits)


def test_adapters_that_do_not_fit_are_named(v2_file: Path) -> None:
    path = v2_file.with_name("lora.pth")

    def refused(state: dict[str, Tensor]) -> str:
        torch.save(state, path)
        with pytest.raises(CheckpointError) as caught:
            load_model(v2_file, config=HEADS, tokenizer=False, adapters=path)
        return str(caught.value)

    whole = lora_state()
    assert "is not a layer of the model" in refused({"layers.9.lora.A.weight": torch.zeros(2, 16)})
    one = {key: tensor for key, tensor in whole.items() if ".B." not in key}
    assert "only one of its two adapters" in refused(one)
    wide = {**whole, f"{LAYER}.lora.A.weight": torch.zeros(2, 20)}
    assert f"{LAYER} has adapters (16, 2) and (2, 20) for weights (16, 16)" in refused(wide)
    assert "is not the adapters that MiniMind's train_lora.py writes" in refused(v2_state())
    nan = {**whole, f"{LAYER}.lora.A.weight": torch.full((2, 16), float("nan"))}
    assert "NaN or infinite numbers" in refused(nan)


@pytest.mark.parametrize(
    ("extra", "whole", "reason"),
    [
        ("vision_proj.mlp.1.weight", True, "a model of images and text (minimind-v)"),
        ("talker.norm.weight", True, "a model of speech and text (minimind-o)"),
        (f"{LAYER}.lora.A.weight", False, "holds LoRA adapters alone. Give model.path the model"),
        (f"{LAYER}.lora.A.weight", True, "holds LoRA adapters between the weights of a model"),
    ],
)
def test_files_that_are_no_model_of_text_are_named_for_what_they_are(
    v2_file: Path, extra: str, whole: bool, reason: str
) -> None:
    state = {**(v2_state() if whole else {}), extra: torch.zeros(2, 16)}
    torch.save(state, v2_file)
    with pytest.raises(CheckpointError) as caught:
        load_model(v2_file, config=HEADS, tokenizer=False)
    assert reason in str(caught.value)


def test_the_tokenizer_of_minimind_s_own_layout_is_found(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    torch.save(v2_state(), tmp_path / "out" / "full_sft_16.pth")
    path = tmp_path / "out" / "full_sft_16.pth"
    with pytest.raises(CheckpointError, match=r"nor in \.\./model"):
        _ = load_model(path, config=HEADS).tokenizer
    tiny_tokenizer().save_pretrained(tmp_path / "model" / "minimind_tokenizer")  # before 2025
    assert len(load_model(path, config=HEADS).tokenizer or ()) == 30
    tiny_tokenizer(35).save_pretrained(tmp_path / "model")
    assert len(load_model(path, config=HEADS).tokenizer or ()) == 35
    tiny_tokenizer(40).save_pretrained(tmp_path / "out")
    assert len(load_model(path, config=HEADS).tokenizer or ()) == 40


def test_a_gguf_file_is_named_with_what_to_do_and_no_other_problem(tmp_path: Path) -> None:
    from minimind_dpo.config.check_models import checkpoint_problems
    from minimind_dpo.config.compose import compose

    path = tmp_path / "minimind-Q8_0.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    config = compose([f"model.path={path}", "data.train=dpo.jsonl"])
    problems = checkpoint_problems(config, set())
    assert [problem.key for problem in problems] == ["model.path"]
    assert "Give model.path the checkpoint that it was converted from" in str(problems[0])
