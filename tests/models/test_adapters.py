"""Adapters know the model they belong to, and a run's folders mean what they hold."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_support import Golden
from peft import AutoPeftModelForCausalLM
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import native_name, save_hf, save_native
from minimind_dpo.models.load import LoadedModel, load_model
from minimind_dpo.models.locate import model_files
from minimind_dpo.models.lora import add_adapters, save_and_merge_adapters
from minimind_dpo.models.options import LoraOptions

from .conftest import tiny_tokenizer

HEADS = {"num_attention_heads": 4}
IDS = torch.arange(12).view(1, -1)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def llama(width: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


def write_run(run: Path, loaded: LoadedModel) -> Tensor:
    """The folder of a run with adapters; what the trained model computes."""
    run.mkdir()
    (run / "config.yaml").write_text("name: dpo\n")
    add_adapters(loaded.model, LoraOptions(r=2, alpha=8))
    torch.manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    trained = logits(loaded.model)
    save_and_merge_adapters(loaded.model, loaded.tokenizer, run / "adapters", loaded.home)
    save_hf(loaded.model, loaded.tokenizer, run / "export", dialect=loaded.dialect)
    return trained


@pytest.fixture
def native(v2_file: Path) -> Path:
    tiny_tokenizer().save_pretrained(v2_file.parent)
    return v2_file


def test_a_run_is_its_export_and_its_adapters_are_added_to_their_model(
    native: Path, tmp_path: Path
) -> None:
    start = logits(load_model(native, config=HEADS).model)
    trained = write_run(tmp_path / "run", load_model(native, config=HEADS))
    assert (trained - start).abs().max() > 1e-2
    for path in ("run", "run/adapters"):
        loaded = load_model(tmp_path / path)
        assert loaded.tokenizer is not None
        assert (logits(loaded.model) - trained).abs().max() < 1e-5
        assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    # The same on the native file, which can then be exported as one.
    both = load_model(native, config=HEADS, adapters=tmp_path / "run" / "adapters")
    assert both.dialect.name == "v2"
    assert (logits(both.model) - trained).abs().max() < 1e-5


def test_adapters_on_the_stacked_weights_of_experts_come_out_whole(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    loaded = load_model(golden("v3_moe_top2").path, tiny_tokenizer())
    trained = write_run(tmp_path / "run", loaded)
    assert (logits(loaded.model) - trained).abs().max() < 1e-4
    for path in ("run", "run/adapters"):
        assert (logits(load_model(tmp_path / path).model) - trained).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's own
def test_peft_finds_the_model_of_adapters_by_itself(native: Path, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", load_model(native, config=HEADS))
    peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "adapters")
    assert (logits(peft) - trained).abs().max() < 1e-5


def test_adapters_of_a_hugging_face_folder_name_it(tmp_path: Path) -> None:
    LlamaForCausalLM(llama(16)).save_pretrained(tmp_path / "llama")
    tiny_tokenizer().save_pretrained(tmp_path / "llama")
    trained = write_run(tmp_path / "run", load_model(tmp_path / "llama"))
    adapters = tmp_path / "run" / "adapters"
    settings = json.loads((adapters / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "llama")
    assert sorted(path.name for path in adapters.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (logits(load_model(adapters).model) - trained).abs().max() < 1e-5
    # An override is part of the model, and not of the folder that adapters would name.
    assert load_model(tmp_path / "llama", config={"rms_norm_eps": 1e-5}).home is None


def test_adapters_are_found_after_their_run_has_moved(native: Path, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", load_model(native, config=HEADS))
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    assert (
        logits(load_model(tmp_path / "elsewhere" / "adapters").model) - trained
    ).abs().max() < 1e-5


def test_files_of_adapters_have_the_mode_of_plainly_created_ones(
    native: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", load_model(native, config=HEADS))
    mask = os.umask(0)
    os.umask(mask)
    for path in (tmp_path / "run" / "adapters").rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_adapters_that_cannot_be_used_say_why(native: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "run", load_model(native, config=HEADS))
    adapters = tmp_path / "run" / "adapters"

    def refused(**options: object) -> str:
        with pytest.raises(CheckpointError) as caught:
            load_model(**{"path": native, "config": HEADS, "adapters": adapters, **options})  # type: ignore[arg-type]
        return str(caught.value)

    assert "Name one of them" in refused(path=adapters)
    assert "is neither a folder with adapter_config.json" in refused(adapters=tmp_path)
    other = LlamaForCausalLM(llama(8))
    other.save_pretrained(tmp_path / "other")
    for device in ("cpu", "meta"):
        options = {"path": tmp_path / "other", "config": None, "tokenizer": False}
        assert "belongs to another model" in refused(**options, device=device)
    settings = json.loads((adapters / "adapter_config.json").read_text())
    (adapters / "base").rename(tmp_path / "base")
    settings["base_model_name_or_path"] = ""
    (adapters / "adapter_config.json").write_text(json.dumps(settings))
    assert "does not say which model" in refused(path=adapters, adapters=None)
    (adapters / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refused()


def test_a_run_without_an_export_says_how_to_finish_it(native: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "export").mkdir(parents=True)
    (run / "config.yaml").write_text("name: dpo\n")
    with pytest.raises(CheckpointError, match=r"has exported no model yet. Finish it with resume"):
        load_model(run)
    loaded = load_model(native, config=HEADS)
    save_native(loaded.model, loaded.dialect, run / "export" / native_name(loaded.dialect))
    assert load_model(run, tokenizer=False, config=HEADS).dialect.name == "v2"


def test_the_files_that_decide_what_a_model_computes_are_known(
    native: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "run", load_model(native, config=HEADS))
    run = tmp_path / "run"
    export = [run / "export" / name for name in ("config.json", "model.safetensors")]
    adapters = [
        run / "adapters" / name for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    base = [run / "adapters" / "base" / path.name for path in export]
    assert model_files(run) == export
    assert model_files(run / "adapters") == [*base, *adapters]
    assert model_files(native, run / "adapters") == [native, *adapters]
    assert model_files("someone/on-a-hub") == []
