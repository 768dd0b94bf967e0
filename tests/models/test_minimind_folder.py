"""A folder in MiniMind's own form is read as data, trained as the native file is, and goes back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_support import Golden
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import native_name, save_hf, save_native
from minimind_dpo.models.load import load_model

from .conftest import tiny_tokenizer

TRAP = "open('RAN', 'w').close(); raise SystemExit('code of the folder ran')"


def write_folder(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], weights: str
) -> Path:
    """What `save_pretrained` of MiniMind's own classes leaves: its code, fields and keys."""
    folder.mkdir()
    auto = {"AutoConfig": "model_minimind.MiniMindConfig"}
    auto |= {"AutoModelForCausalLM": "model_minimind.MiniMindForCausalLM"}
    fields = {"model_type": "minimind", "auto_map": auto, "hidden_act": "silu", "dropout": 0.0}
    fields |= {"architectures": ["MiniMindForCausalLM"], "dtype": "float16"} | config
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model_minimind.py").write_text(TRAP)
    if weights == "model.safetensors":
        copies = {key: tensor.clone() for key, tensor in state.items()}
        save_file(copies, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(state, folder / weights)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def golden_folder(g: Golden, tmp_path: Path, weights: str = "model.safetensors") -> Path:
    state = torch.load(g.path, weights_only=True)
    config = {name: value for name, value in g.config.items() if name != "generation"}
    config.setdefault("rope_theta", 1e6)
    if "dim" in config:
        config["n_shared_experts"] = True  # a flag in the early MiniMind2
    return write_folder(tmp_path / "folder", state, config, weights)


@pytest.mark.parametrize("name", ["v2", "v2_moe", "v2a", "v3", "v3_moe_top1", "v3_moe_top2"])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_logits_are_those_of_the_original_program(
    name: str, weights: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    folder = golden_folder(g, tmp_path, weights)
    loaded = load_model(folder)
    with torch.no_grad():
        logits = loaded.model(input_ids=g.input_ids).logits
    assert (logits[:, g.data["positions"]] - g.logits).abs().max() < 2e-5
    assert "in a folder of its own form" in loaded.describe()
    assert load_model(folder, device="meta").dialect == loaded.dialect


@pytest.mark.parametrize("trusted", [False, True])
def test_no_code_of_the_folder_is_run(
    trusted: bool, golden: Callable[[str], Golden], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_model(golden_folder(golden("v3"), tmp_path), trust_remote_code=trusted)
    assert loaded.tokenizer is not None
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("name", ["v2_moe", "v2a", "v3"])
def test_the_export_has_the_fields_keys_and_code_that_came(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    folder = golden_folder(g, tmp_path)
    loaded = load_model(folder)
    written = save_hf(loaded.model, loaded.tokenizer, tmp_path / "export", dialect=loaded.dialect)
    came = json.loads((folder / "config.json").read_text())
    assert json.loads((written / "config.json").read_text()) == came | {"dtype": "float32"}
    assert (written / "model_minimind.py").read_bytes() == TRAP.encode()
    before, after = (load_file(path / "model.safetensors") for path in (folder, written))
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor.float()), key
    # And the native file, for the scripts that load one.
    path = save_native(loaded.model, loaded.dialect, tmp_path / native_name(loaded.dialect))
    assert list(torch.load(path, weights_only=True)) == list(before)


def test_an_override_is_in_the_exported_config_under_the_name_used_there(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    folder = golden_folder(golden("v2a"), tmp_path)
    loaded = load_model(folder, config={"rms_norm_eps": 1e-6, "max_position_embeddings": 64})
    written = save_hf(loaded.model, None, tmp_path / "export", dialect=loaded.dialect)
    fields = json.loads((written / "config.json").read_text())
    assert (fields["norm_eps"], fields["max_seq_len"]) == (1e-6, 64)
    assert "rms_norm_eps" not in fields
    assert load_model(written).model.config.rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_act": "gelu"}, "hidden_act='gelu', and only 'silu' is supported"),
        ({"inference_rope_scaling": True}, "inference_rope_scaling=True, and only False"),
        ({"num_hidden_layers": 3}, r"config.json: num_hidden_layers=3, but the weights .* have 2"),
        ({"num_attention_heads": "four"}, "config.json: num_attention_heads='four' must be"),
        ({"tie_word_embeddings": True, "head": 1.0}, "differ, but v3 ties them"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(
    change: dict[str, Any], reason: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden("v3")
    state = torch.load(g.path, weights_only=True)
    state["lm_head.weight"] = state["lm_head.weight"] + change.pop("head", 0.0)
    config = {**g.config, **change}
    config.pop("generation")
    folder = write_folder(tmp_path / "folder", state, config, "model.safetensors")
    with pytest.raises(CheckpointError, match=reason):
        load_model(folder)


@pytest.mark.parametrize(("kind", "what"), [("minimind-v", "images"), ("minimind-o", "speech")])
def test_a_folder_of_another_member_of_the_family_is_named(
    kind: str, what: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    folder = golden_folder(golden("v3"), tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"model_type": kind}))
    with pytest.raises(CheckpointError, match=f"a model of {what} and text"):
        load_model(folder)


def test_a_name_on_a_hub_is_fetched_and_read_the_same(
    golden: Callable[[str], Golden], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = golden_folder(golden("v3"), tmp_path)
    fields = json.loads((folder / "config.json").read_text())
    home = "minimind_dpo.models.minimind.folder.snapshot_download"
    monkeypatch.setattr(home, lambda name, **options: str(folder))
    monkeypatch.setattr("minimind_dpo.models.find_on_hub.why_unreachable", lambda endpoint: None)
    monkeypatch.setattr(
        "transformers.PreTrainedConfig.get_config_dict", lambda *args, **options: (fields, {})
    )
    loaded = load_model("someone/MiniMind2", tokenizer=False)
    assert loaded.dialect == load_model(folder, tokenizer=False).dialect


def test_weights_that_an_index_names_and_that_are_missing_are_named(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    folder = golden_folder(golden("v3"), tmp_path)
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": {"a": "part.safetensors", "b": "other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"other\.safetensors is missing"):
        load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        load_model(folder)
