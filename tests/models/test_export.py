"""What is written loads back elsewhere with the same logits, or as the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_support import HUB, NATIVE, Golden
from transformers import AutoModelForCausalLM, AutoTokenizer

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import check_own_folder, native_name, save_hf, save_native
from minimind_dpo.models.load import load_model

from .conftest import tiny_tokenizer, v2_state

HEADS = {"num_attention_heads": 4}


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_file_comes_back_bit_for_bit(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    stored = torch.load(g.path, weights_only=True)
    written = save_native(loaded.model, loaded.dialect, tmp_path / "a.pth", torch.float32)
    back = torch.load(written, weights_only=True)
    assert list(back) == list(stored)
    for key, tensor in stored.items():
        assert back[key].dtype == torch.float32
        assert torch.equal(back[key], tensor.float()), key


@pytest.mark.parametrize("name", NATIVE)
def test_the_native_export_is_half_with_the_same_keys_and_shapes(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    path = tmp_path / native_name(loaded.dialect)
    assert path.name == f"dpo_64{'_moe' if '_moe' in name else ''}.pth"
    back = torch.load(save_native(loaded.model, loaded.dialect, path), weights_only=True)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == g.data["keys"]
    assert {tensor.dtype for tensor in back.values()} == {torch.float16}
    again = load_model(path, config=g.config, tokenizer=False)
    assert again.dialect.name == loaded.dialect.name


def test_the_tied_embedding_is_stored_twice_as_in_the_original(
    v2_file: Path, tmp_path: Path
) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    path = save_native(loaded.model, loaded.dialect, tmp_path / "a.pth")
    state = torch.load(path, weights_only=True)
    head, embedding = state["lm_head.weight"], state["model.embed_tokens.weight"]
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()


def test_keys_that_the_input_lacked_stay_away_and_prefixes_come_back(v2_file: Path) -> None:
    state = {f"module.{key}": tensor for key, tensor in v2_state().items()}
    del state["module.lm_head.weight"]
    torch.save(state, v2_file)
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    path = save_native(loaded.model, loaded.dialect, v2_file.with_name("b.pth"), torch.float32)
    assert list(torch.load(path, weights_only=True)) == list(state)


@pytest.mark.parametrize("name", NATIVE + HUB)
def test_the_hugging_face_export_has_equal_logits(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    folder = save_hf(loaded.model, tiny_tokenizer(), tmp_path / "export")
    again = load_model(folder)
    with torch.no_grad():
        expected = loaded.model(input_ids=g.input_ids).logits
        assert torch.equal(again.model(input_ids=g.input_ids).logits, expected)
    assert again.dialect.class_name == loaded.dialect.class_name
    assert again.dialect.num_parameters == loaded.dialect.num_parameters


CLEAN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "w1 w2"}], tokenize=True)
    assert list(ids["input_ids"]) == [1, 3, 6, 7, 2], ids
    assert model.generation_config.eos_token_id == 2
    torch.save(model(input_ids=torch.arange(1, 30).view(1, -1)).logits, folder + "/logits.pt")
assert not any(name.startswith("minimind") for name in sys.modules)
"""


def test_a_process_without_this_project_loads_the_export(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    expected = {}
    for name in ("v1", "v2_moe", "v3_moe_top2"):
        g = golden(name)
        loaded = load_model(g.path, config=g.config, tokenizer=tiny_tokenizer())
        folder = save_hf(loaded.model, loaded.tokenizer, tmp_path / name)
        with torch.no_grad():
            expected[folder] = loaded.model(input_ids=torch.arange(1, 30).view(1, -1)).logits
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CLEAN, *map(str, expected)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder, logits in expected.items():
        got = torch.load(folder / "logits.pt", weights_only=True)
        assert (got - logits).abs().max() < 1e-6


def test_the_export_names_the_dtype_it_is_in(v2_file: Path, tmp_path: Path) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    folder = save_hf(loaded.model, None, tmp_path / "half", torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.dtype == torch.float32


def test_an_earlier_export_is_replaced_as_a_whole(v2_file: Path, tmp_path: Path) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    folder = tmp_path / "export"
    save_hf(loaded.model, tiny_tokenizer(), folder)
    stale = folder / "model-00002-of-00002.safetensors"
    stale.write_text("of the export before")
    save_hf(loaded.model, tiny_tokenizer(), folder)
    assert not stale.exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export", v2_file.name]


def test_a_folder_with_files_of_the_users_own_is_never_replaced(
    v2_file: Path, tmp_path: Path
) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "thesis.txt").write_text("chapter 1")
    with pytest.raises(CheckpointError, match=r"export holds thesis.txt, which is no part"):
        save_hf(loaded.model, None, folder)
    assert [entry.name for entry in folder.iterdir()] == ["thesis.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    v2_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    target = tmp_path / "dpo_16.pth"
    target.write_bytes(b"old")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_native(loaded.model, loaded.dialect, target)
    monkeypatch.setattr(type(loaded.model), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_hf(loaded.model, None, tmp_path / "export")
    assert target.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["dpo_16.pth", v2_file.name]


def test_weights_that_half_precision_cannot_hold_are_refused(v2_file: Path) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="as float16"):
        save_native(loaded.model, loaded.dialect, v2_file.with_name("dpo_16.pth"))
    assert [entry.name for entry in v2_file.parent.iterdir()] == [v2_file.name]


def test_a_hugging_face_model_has_no_native_file(v2_file: Path, tmp_path: Path) -> None:
    loaded = load_model(v2_file, config=HEADS, tokenizer=False)
    again = load_model(save_hf(loaded.model, None, tmp_path / "export"))
    with pytest.raises(CheckpointError, match="native MiniMind file"):
        save_native(again.model, again.dialect, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="native MiniMind file"):
        native_name(again.dialect)


def test_a_folder_that_may_not_be_written_into_is_refused_before_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_own_folder(tmp_path / "new")
    check_own_folder(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as for another owner's
    with pytest.raises(CheckpointError, match="may not be written into"):
        check_own_folder(tmp_path)
