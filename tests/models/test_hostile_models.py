"""Files and folders made to break a reader: refused in a sentence, before memory is touched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import rehearse_export, save_hf
from minimind_dpo.models.hub import _check_rope
from minimind_dpo.models.load import load_model

from .conftest import tiny_tokenizer, v2_state

HEADS = {"num_attention_heads": 4}
KEY = "model.layers.0.mlp.up_proj.weight"


def refused(path: Path, **options: Any) -> str:
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **options)
    assert time.process_time() - started < 5
    assert len(str(caught.value)) < 1200
    return str(caught.value)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        # 10^8 rows of one number: 4 bytes in the file.
        (lambda: torch.zeros(1).expand(10**8, 16), "more numbers than the file holds for it"),
        (lambda: torch.zeros(24, 16, device="meta"), "on the device meta"),
        (lambda: torch.zeros(24, 16).to_sparse_csr(), "torch.sparse_csr"),
        (lambda: torch.zeros(24, 16).to_sparse(), "torch.sparse_coo"),
        (lambda: torch.zeros(24, 16).byte().view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
        (lambda: torch.zeros(24, 16, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_tensors_that_are_no_plain_weights_are_refused(
    v2_file: Path, make: Callable[[], Tensor], reason: str
) -> None:
    torch.save({**v2_state(), KEY: make()}, v2_file)
    told = refused(v2_file, config=HEADS, tokenizer=False)
    assert f"{KEY!r} is" in told
    assert reason in told


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(v2_file: Path) -> None:
    nested = torch.nested.nested_tensor([torch.zeros(2, 16), torch.zeros(3, 16)])
    torch.save({**v2_state(), KEY: nested}, v2_file)
    assert str(v2_file) in refused(v2_file, config=HEADS, tokenizer=False)


def test_a_layer_number_of_thousands_of_digits_is_a_key_left_over(v2_file: Path) -> None:
    key = f"model.layers.{'9' * 5000}.mlp.up_proj.weight"
    torch.save({**v2_state(), key: torch.zeros(2, 2)}, v2_file)
    assert "1 key(s) are left over: model.layers.99" in refused(
        v2_file, config=HEADS, tokenizer=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def change(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "5", "null"])
def test_a_configuration_that_holds_no_settings_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("name", ["num_hidden_layers", "n_layer"])
def test_absurd_numbers_of_layers_are_refused(folder: Path, name: str) -> None:
    change(folder / "config.json", **{name: 10**9})
    assert f"config.json has {name}=1000000000" in refused(folder)


def test_an_absurd_number_of_layers_under_model_config_is_refused(folder: Path) -> None:
    told = refused(folder, config={"num_hidden_layers": 10**9})
    assert "model.config.num_hidden_layers=1000000000" in told


@pytest.mark.parametrize(
    "fields",
    [
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "flash_attention_2"},
        {"_attn_implementation": "someone/kernel-of-theirs"},
    ],
)
def test_habits_of_running_in_a_config_break_neither_a_model_nor_its_export(
    folder: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    plain = load_model(folder).model
    change(folder / "config.json", **fields)
    loaded = load_model(folder)
    ids = torch.arange(9).view(1, -1)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, plain(ids).logits)
    again = load_model(save_hf(loaded.model, loaded.tokenizer, tmp_path / "export"))
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, plain(ids).logits)


def test_generation_settings_without_effect_are_exported_as_they_came(
    folder: Path, tmp_path: Path
) -> None:
    change(folder / "generation_config.json", do_sample=False, top_p=0.8, temperature=0.7)
    loaded = load_model(folder)
    written = save_hf(loaded.model, loaded.tokenizer, tmp_path / "export")
    settings = GenerationConfig.from_pretrained(written)
    assert (settings.do_sample, settings.top_p, settings.temperature) == (False, 0.8, 0.7)
    assert settings.eos_token_id == 2


def test_settings_that_cannot_be_written_are_found_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(folder, device="meta")
    rehearse_export(loaded.model, loaded.tokenizer, loaded.dialect)

    def fails(*args: Any, **options: Any) -> None:
        raise RuntimeError("no form for this")

    monkeypatch.setattr(type(loaded.tokenizer), "save_pretrained", fails)
    with pytest.raises(CheckpointError, match=r"not exported, .* written: no form for this"):
        rehearse_export(loaded.model, loaded.tokenizer, loaded.dialect)


def test_a_tokenizer_that_panics_is_refused(folder: Path, capfd: Any) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "its tokenizer cannot be loaded: no entry found for key" in refused(folder)


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_size": "x"},
        {"num_attention_heads": 3},
        {"rope_parameters": True},
        {"pad_token_id": "x"},
    ],
)
def test_a_fault_of_config_json_is_told_in_one_line_and_not_as_the_tokenizers(
    folder: Path, fields: dict[str, Any]
) -> None:
    change(folder / "config.json", **fields)
    told = refused(folder)
    assert "tokenizer" not in told
    assert "\n" not in told
    assert "Check its files, and the overrides under model.config" in told


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_factor_of_rope_that_is_text_is_refused_before_the_first_step(by_layer: bool) -> None:
    rope: dict[str, Any] = {"rope_type": "longrope", "attention_factor": "2"}
    config: Any = SimpleNamespace(rope_parameters={"full_attention": rope} if by_layer else rope)
    words = r"x: config.json has rope_parameters.attention_factor='2', which is no number"
    with pytest.raises(CheckpointError, match=words):
        _check_rope(config, "x")
    rope["attention_factor"] = 2.0
    _check_rope(config, "x")


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"head_dim": 10**9}, "numbers, and the files of its weights have"),
        ({"vocab_size": 10**12}, "asks for 32,000,000,"),
        ({"vocab_size": 2**70}, "Overflow when unpacking"),
        ({"num_labels": 10**18}, "num_labels=1000000000000000000, and no model has so many"),
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused_before_it_is_taken(
    folder: Path, fields: dict[str, Any], reason: str, device: Any
) -> None:
    change(folder / "config.json", **fields)
    assert reason in refused(folder, device=device)


def test_names_that_a_terminal_would_obey_or_cannot_write_are_spelt_out(v2_file: Path) -> None:
    torch.save({**v2_state(), "x\n\x1b[31m\udcff\ud800": torch.zeros(3)}, v2_file)
    assert r"x\n\x1b[31m\udcff\ud800" in refused(v2_file, config=HEADS, tokenizer=False)


@pytest.mark.parametrize("part", ["x" * 5000, "a\0b"])
def test_an_index_of_parts_that_cannot_be_files_is_refused(folder: Path, part: str) -> None:
    (folder / "model.safetensors").unlink()
    change(folder / "config.json", model_type="minimind")
    index = folder / "model.safetensors.index.json"
    change(index, weight_map={"a": part})
    assert "is missing, which its index names" in refused(folder)


def test_an_index_of_parts_that_is_nested_too_deeply_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    change(folder / "config.json", model_type="minimind")
    index = folder / "model.safetensors.index.json"
    index.write_text("[" * 100_000)
    assert "does not name the parts of the weights" in refused(folder)
