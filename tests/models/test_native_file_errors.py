"""A native file or override that is wrong is refused with its reason, never loaded in part."""

from __future__ import annotations

import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import load_model

from .conftest import random_state, v2_state

HEADS = {"num_attention_heads": 4}


def refused(path: Path, config: dict[str, Any] | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, config=HEADS if config is None else config, tokenizer=False)
    return str(caught.value)


def test_the_healthy_file_loads(v2_file: Path) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    # 40*16 embedding + 2 layers of 2*16*16 + 2*4*16 + 3*24*16 + 2*16 + last norm 16 = 4304
    assert loaded.dialect.num_parameters == 4304
    assert len(repr(loaded)) < 250
    assert loaded.describe() == (
        "MiniMind2 (v2): LlamaForCausalLM, 0.004M parameters, file float32, all trained"
    )


def test_every_flipped_bit_of_a_tensor_is_noticed(v2_file: Path) -> None:
    whole = v2_file.read_bytes()
    with zipfile.ZipFile(v2_file) as archive:
        entries = [e for e in archive.infolist() if "/data/" in e.filename]
    for entry in entries[::5]:
        # 30 bytes of header, then name and extra field, then the numbers.
        name, extra = whole[entry.header_offset + 26], whole[entry.header_offset + 28]
        place = entry.header_offset + 30 + name + extra + 3
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        v2_file.write_bytes(damaged)
        torch.load(v2_file, weights_only=True)  # torch itself notices nothing
        assert "does not match its checksum" in refused(v2_file)


def test_damage_anywhere_is_refused_or_harmless(v2_file: Path) -> None:
    healthy = load_model(v2_file, config=HEADS, tokenizer=False).model.state_dict()
    whole = v2_file.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 60)
    # Names and sizes live in the directory at the end and in the pickle at the start.
    places += [*range(len(whole) - 100, len(whole), 5), *range(60, 200, 7)]
    refusals = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        v2_file.write_bytes(damaged)
        try:
            loaded = load_model(v2_file, config=HEADS, tokenizer=False)
        except CheckpointError:
            refusals += 1
            continue
        for key, tensor in loaded.model.state_dict().items():
            assert torch.equal(tensor, healthy[key]), place
    assert refusals > 20


@pytest.mark.parametrize("kept", [1, 100, 0.5, 0.99])
def test_a_file_cut_short_is_named(v2_file: Path, kept: float) -> None:
    whole = v2_file.read_bytes()
    v2_file.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    assert str(v2_file) in refused(v2_file)


def test_an_empty_file_is_named(v2_file: Path) -> None:
    v2_file.write_bytes(b"")
    assert "is empty (0 bytes)" in refused(v2_file)


@pytest.mark.parametrize("content", [b"hello world" * 50, b"\x80\x02}q\x00.", b"\x00" * 999])
def test_what_is_no_torch_file_is_said_to_be_none(v2_file: Path, content: bytes) -> None:
    v2_file.write_bytes(content)
    assert "cannot be read" in refused(v2_file)


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("code ran while loading",))


@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_no_code_in_a_file_is_run(
    v2_file: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "torch":
        torch.save({"model.embed_tokens.weight": Dangerous()}, v2_file)
    else:
        v2_file.write_bytes(pickle.dumps(Dangerous()))
    assert "cannot be read" in refused(v2_file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(2)], "holds a list"),
        ({}, "holds an empty dict"),
        ({"model": {"a": torch.zeros(1)}, "step": 3}, "save its entry 'model'"),
        ({"model.embed_tokens.weight": torch.zeros(2, 2, dtype=torch.int8)}, "Quantised"),
        ({3: torch.zeros(2)}, "a Tensor under a key of type int"),
        ({"encoder.weight": torch.zeros(2, 2)}, "no MiniMind generation has these keys: encoder"),
        ({"tok_embeddings.weight": torch.zeros(4, 4)}, "generation=v1 or v2a"),
        ({"model.embed_tokens.weight": torch.zeros(4, 4)}, "is missing"),
        ({"model.embed_tokens.weight": torch.zeros(4)}, "not 2 dimension(s)"),
    ],
)
def test_what_is_no_model_is_said_to_be_none(v2_file: Path, content: Any, reason: str) -> None:
    torch.save(content, v2_file)
    assert reason in refused(v2_file)


def test_missing_and_left_over_keys_are_named(v2_file: Path) -> None:
    state = v2_state()
    del state["model.layers.1.self_attn.o_proj.weight"]
    state["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
    torch.save(state, v2_file)
    reason = refused(v2_file)
    assert "1 key(s) are missing: model.layers.1.self_attn.o_proj.weight" in reason
    assert "1 key(s) are left over: model.layers.0.self_attn.q_proj.bias" in reason


def test_a_missing_layer_is_named(v2_file: Path) -> None:
    state = {key: t for key, t in v2_state(3).items() if "layers.1." not in key}
    torch.save(state, v2_file)
    assert "model.layers.1 is missing" in refused(v2_file)


def test_weights_that_are_not_finite_are_named(v2_file: Path) -> None:
    state = v2_state()
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    state["model.norm.weight"][0] = float("inf")
    torch.save(state, v2_file)
    reason = refused(v2_file)
    assert "2 tensor(s) hold NaN or infinite numbers" in reason
    assert "model.layers.1.mlp.up_proj.weight" in reason


def test_large_half_weights_whose_sum_overflows_are_finite(v2_file: Path) -> None:
    state = {key: tensor.half() for key, tensor in v2_state().items()}
    state["model.layers.0.mlp.up_proj.weight"].fill_(60000.0)
    torch.save(state, v2_file)
    assert load_model(v2_file, config=HEADS, tokenizer=False).dialect.file_dtype == torch.float16


def test_a_head_that_differs_from_its_tied_embedding_is_refused(v2_file: Path) -> None:
    state = v2_state()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    torch.save(state, v2_file)
    assert "lm_head.weight and model.embed_tokens.weight differ" in refused(v2_file)


def test_a_layer_of_another_width_is_named(v2_file: Path) -> None:
    state = v2_state()
    state["model.layers.1.mlp.down_proj.weight"] = torch.zeros(16, 20)
    torch.save(state, v2_file)
    reason = refused(v2_file)
    assert "model.layers.1.mlp.down_proj.weight (16, 20) where (16, 24) is expected" in reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_heads": 4}, r"v2 has no field model.config.num_heads. Known ones: "),
        ({"n_heads": 4}, "no field model.config.n_heads"),
        ({"num_attention_heads": 3}, "model.config.num_attention_heads=3 cannot be: q_proj has 16"),
        ({"num_attention_heads": 2}, "cannot be"),  # half a key-value head
        ({"num_attention_heads": 16}, "even head size"),  # head size 1 has no rotary pair
        (HEADS | {"num_key_value_heads": 2}, "num_key_value_heads=2 cannot be"),
        (HEADS | {"hidden_size": 32}, "hidden_size=32, but the weights in the file have 16"),
        (HEADS | {"num_hidden_layers": 3}, "num_hidden_layers=3"),
        (HEADS | {"head_dim": 8}, "head_dim=8, but 16 rows over 4 heads make 4"),
        (HEADS | {"use_moe": True}, "use_moe=True, but"),
        ({"num_attention_heads": "four"}, "'four' must be a whole number of 1 or more"),
        ({"num_attention_heads": 0}, "0 must be a whole number"),
        ({"num_attention_heads": True}, "must be a number"),
        (HEADS | {"rope_theta": float("nan")}, "must be a number of 0 or more"),
    ],
)
def test_an_override_that_cannot_be_is_named(
    v2_file: Path, config: dict[str, Any], reason: str
) -> None:
    assert reason in refused(v2_file, config)


def test_default_heads_that_do_not_divide_ask_for_the_number(v2_file: Path) -> None:
    torch.save(v2_state(hidden=20), v2_file)
    assert "8 heads, the default of v2, cannot be" in refused(v2_file, {})


def test_key_value_heads_alone_determine_the_heads(v2_file: Path) -> None:
    loaded = load_model(v2_file, config={"num_key_value_heads": 1}, tokenizer=False)
    assert loaded.model.config.num_attention_heads == 4


def test_wrapper_prefixes_of_parallel_and_compiled_runs_are_understood(v2_file: Path) -> None:
    plain = load_model(v2_file, config=HEADS, tokenizer=False)
    wrapped = OrderedDict((f"module._orig_mod.{k}", t) for k, t in v2_state().items())
    torch.save(wrapped, v2_file)
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    assert loaded.dialect.prefix == "module._orig_mod."
    for key, tensor in plain.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], tensor)


@pytest.mark.parametrize("change", ["transposed", "half of the layers"])
def test_a_mask_other_than_the_causal_one_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "sft_full_8.pth"
    state = v_learn_state()
    key = "minimind_dense.blocks.1.attention.mask"
    if change == "transposed":
        state[key] = state[key].transpose(2, 3)
    else:
        del state[key]
    torch.save(state, path)
    reason = refused(path, {"head_num": 2})
    assert "mask" in reason


@pytest.mark.parametrize("shape", [(3,), (), (1, 1, 0, 0), (6, 6)])
def test_a_mask_of_other_dimensions_is_refused(v2_file: Path, shape: tuple[int, ...]) -> None:
    key = "minimind_dense.blocks.0.attention.mask"
    torch.save({**v_learn_state(), key: torch.zeros(shape)}, v2_file)
    assert f"{key} has shape {shape}, not 4 dimension(s)" in refused(v2_file, {"head_num": 2})
    torch.save({**v2_state(), "x.attention.mask": torch.zeros(shape)}, v2_file)
    assert "x.attention.mask is not the causal mask" in refused(v2_file)


def test_dropout_and_dtype_out_of_range_are_refused(v2_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model.dropout=1.0"):
        load_model(v2_file, config=HEADS, tokenizer=False, dropout=1.0)
    with pytest.raises(CheckpointError, match="floating point"):
        load_model(v2_file, config=HEADS, tokenizer=False, dtype=torch.int8)


def v_learn_state() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embed.embedding.weight": (20, 8), "rmsnorm.gamma": (8,)}
    for index in range(2):
        block = f"minimind_dense.blocks.{index}."
        for part, rows in (("q", 8), ("k", 4), ("v", 4), ("o", 8)):
            shapes[f"{block}attention.{part}_proj.weight"] = (rows, 8)
            shapes[f"{block}attention.{part}_proj.bias"] = (rows,)
        shapes |= {f"{block}rmsnorm1.gamma": (8,), f"{block}rmsnorm2.gamma": (8,)}
        for part, size in (("gate", (12, 8)), ("up_proj", (12, 8)), ("down_proj", (8, 12))):
            shapes[f"{block}ffn.{part}.weight"] = size
            shapes[f"{block}ffn.{part}.bias"] = size[:1]
    shapes |= {"lm_head.weight": (20, 8), "lm_head.bias": (20,)}
    state = random_state(shapes)
    for index in range(2):
        mask = torch.full((1, 1, 6, 6), float("-inf")).triu(1)
        state[f"minimind_dense.blocks.{index}.attention.mask"] = mask
    return state


def test_v_learn_reads_its_length_off_the_stored_mask(tmp_path: Path) -> None:
    path = tmp_path / "sft_full_8.pth"
    torch.save(v_learn_state(), path)
    loaded = load_model(path, config={"head_num": 2}, tokenizer=False)
    assert loaded.model.config.max_position_embeddings == 6
    assert not any("mask" in key for key in loaded.model.state_dict())
    assert "max_seqlen=7, but" in refused(path, {"head_num": 2, "max_seqlen": 7})


def test_v_learn_drops_in_three_places_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "sft_full_8.pth"
    torch.save(v_learn_state(), path)
    for asked in (0.0, 0.1):
        config = load_model(
            path, config={"head_num": 2}, tokenizer=False, dropout=asked
        ).model.config
        dropouts = (config.attention_dropout, config.residual_dropout, config.ffn_dropout)
        assert dropouts == (asked,) * 3
