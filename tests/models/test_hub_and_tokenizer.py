"""Folders, hub names and tokenizers: found where they are, refused with what to do where not."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from published import TOKENIZERS
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config

from minimind_dpo.demo import TOKENIZER
from minimind_dpo.models import hub
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.export import save_hf
from minimind_dpo.models.load import load_model
from minimind_dpo.models.locate import HUB_NAME
from minimind_dpo.models.tokenizers import end_of_turn_id

from .conftest import tiny_tokenizer, v2_state

HEADS = {"num_attention_heads": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face folder: Llama, 16 wide, bfloat16, dropout 0.3 in its configuration."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.3,
    )
    target = tmp_path / "llama"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    return target


def test_a_folder_loads_with_dropout_off_and_its_dtype_reported(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.model.config.attention_dropout == 0.0
    assert loaded.dialect.file_dtype == torch.bfloat16
    assert loaded.describe().startswith("Hugging Face model (hf): LlamaForCausalLM, 0.0")
    assert loaded.tokenizer is not None
    assert len(loaded.tokenizer) == 30
    assert load_model(folder, dropout=0.2).model.config.attention_dropout == 0.2


def test_folder_fields_can_be_overridden_and_unknown_ones_list_the_known(folder: Path) -> None:
    config = load_model(folder, config={"rms_norm_eps": 1e-5, "rope_theta": 5e5}).model.config
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 5e5)
    with pytest.raises(
        CheckpointError, match=r"no field model.config.n_heads. Known ones: .*vocab"
    ):
        load_model(folder, config={"n_heads": 4})
    with pytest.raises(CheckpointError, match="hidden_size"):
        load_model(folder, config={"hidden_size": "wide"})
    with pytest.raises(CheckpointError, match=r"model\.config"):
        load_model(folder, config={"hidden_size": 32})


def test_a_folder_with_weights_missing_or_left_over_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"keys 9 missing: model.layers.2"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"keys 9 left over: model.layers.1"):
        load_model(folder)


def test_a_folder_that_cannot_be_used_says_why(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        load_model(folder)
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="encoder-decoder"):
        load_model(tmp_path / "t5")
    with pytest.raises(CheckpointError, match=r"no config.json"):
        load_model(tmp_path)


def test_weights_of_a_bin_file_are_loaded_without_running_code(folder: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    loaded = load_model(folder)
    key = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(loaded.model.state_dict()[key], model.float().state_dict()[key])


def test_code_of_a_folder_is_not_run_unless_asked(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["model_type"] = "of_my_own"
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('the code of the folder ran')")
    with pytest.raises(CheckpointError, match=r"model.trust_remote_code=true"):
        load_model(folder)


def test_a_folder_of_native_files_names_them(v2_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"It holds full_sft_16.pth; give model.path one"):
        load_model(v2_file.parent)


@pytest.mark.parametrize("spelling", ["full_sft_61.pth", "./full_sft_16", "sub/full_sft_16.pth"])
def test_a_local_path_that_does_not_exist_never_reaches_a_hub(
    v2_file: Path, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", no_hub)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", no_hub)
    monkeypatch.chdir(v2_file.parent)
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        load_model(spelling)
    if not spelling.startswith("sub"):
        assert "Did you mean full_sft_16.pth?" in str(caught.value)


def test_a_name_that_the_hub_does_not_give_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("offline, and it is not in the cache")

    monkeypatch.setattr("minimind_dpo.models.find_on_hub.why_unreachable", lambda endpoint: None)
    # The first question is for its settings; the client itself asks again for half a minute.
    monkeypatch.setattr("transformers.PretrainedConfig.get_config_dict", offline)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with pytest.raises(CheckpointError, match=r"no such local path, and the hub gave no model"):
        load_model("someone/minimind-of-theirs")


def test_a_hub_that_cannot_be_reached_is_told_at_once_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on the discard port of this machine.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_model("nobody/nothing")
    assert time.monotonic() - started < 10
    told = str(caught.value)
    assert "model.path=nobody/nothing: there is no such file or folder" in told
    assert "the hub http://127.0.0.1:9 cannot be reached" in told
    assert f"the cache {tmp_path}" in told
    for way in ("HF_ENDPOINT=", "model.path=modelscope:nobody/nothing", "give its folder"):
        assert way in told


def test_without_the_hub_a_model_of_its_cache_is_loaded_and_said_to_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    revision = "0" * 40
    kept = tmp_path / "cache" / "models--some--cached"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(revision)
    shutil.copytree(folder, kept / "snapshots" / revision)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert load_model("some/cached").dialect.name == "hf"
    assert "model.path=some/cached is taken from the cache" in caplog.text


def test_onto_the_meta_device_a_model_loads_without_weights_and_is_checked_the_same(
    folder: Path, v2_file: Path
) -> None:
    for path, config in ((folder, None), (v2_file, HEADS)):
        whole = load_model(path, False, config)
        bare = load_model(path, False, config, device="meta")
        assert {tensor.device.type for tensor in bare.model.parameters()} == {"meta"}
        shapes = {key: tensor.shape for key, tensor in whole.model.state_dict().items()}
        assert {key: t.shape for key, t in bare.model.state_dict().items()} == shapes
        assert bare.dialect == whole.dialect
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.full((16,), float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers: model.norm.weight"):
        load_model(folder, device="meta")
    weights["model.norm.weight"] = torch.zeros(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for device in ("cpu", "meta"):
        with pytest.raises(
            CheckpointError, match=r"model.norm.weight \(7,\) where \(16,\) is expected"
        ):
            load_model(folder, device=device)


def put_norm(folder: Path, name: str, norm: torch.Tensor) -> None:
    """A copy of the folder's weights under another name, with that last norm."""
    weights = load_file(folder / "model.safetensors") | {"model.norm.weight": norm}
    save_file(weights, folder / name, metadata={"format": "pt"})


def test_only_the_files_that_a_model_uses_are_looked_through(folder: Path) -> None:
    put_norm(folder, "consolidated.safetensors", torch.full((16,), float("nan")))
    assert load_model(folder, device="meta").dialect == load_model(folder).dialect
    # As parts that an index names.
    put_norm(folder, "part.safetensors", torch.ones(16))
    (folder / "model.safetensors").unlink()
    keys = load_file(folder / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "part.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(folder, device="meta").dialect.file_dtype == torch.bfloat16
    index["weight_map"] = dict.fromkeys(keys, "consolidated.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"consolidated.*infinite numbers: model.norm.weight"):
        load_model(folder, device="meta")


def test_numbers_of_eight_bits_are_looked_through_as_others_are(folder: Path) -> None:
    norm = torch.ones(16)
    put_norm(folder, "model.safetensors", norm.to(torch.float8_e4m3fn))
    load_model(folder, device="meta")
    norm[3] = float("nan")
    put_norm(folder, "model.safetensors", norm.to(torch.float8_e4m3fn))
    for device in ("cpu", "meta"):
        with pytest.raises(CheckpointError, match=r"infinite numbers: model.norm.weight"):
            load_model(folder, device=device)


def test_a_named_tokenizer_stands_in_for_one_that_cannot_be_loaded(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "whole")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"Set model\.tokenizer to a folder"):
        load_model(folder)
    assert load_model(folder, tmp_path / "whole").tokenizer is not None
    assert f"as the tokenizer in {folder} does is not known" in caplog.text


def test_a_tokenizer_with_other_special_numbers_than_the_models_own_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    other = json.loads((folder / "tokenizer.json").read_text())
    moved = {"<|im_end|>": 3, "<|im_start|>": 2}
    assert "<|im_end|>" in other["model"]["vocab"], other["model"]["vocab"]
    swap = {other["model"]["vocab"][token]: number for token, number in moved.items()}
    vocabulary = other["model"]["vocab"]
    other["model"]["vocab"] = {t: swap.get(n, n) for t, n in vocabulary.items()}
    for added in other["added_tokens"]:
        added["id"] = swap.get(added["id"], added["id"])
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="numbers special tokens otherwise"):
        load_model(folder, tmp_path / "other")


def test_a_folder_of_this_machine_marks_a_name_as_local(
    v2_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(v2_file.parent.parent)
    name = f"{v2_file.parent.name}/full_sft_61"
    with pytest.raises(CheckpointError, match=r"Did you mean .*/?full_sft_16.pth\?"):
        load_model(name)


def test_modelscope_names_say_which_extra_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "modelscope", None)
    with pytest.raises(CheckpointError, match=r"pip install minimind-dpo\[modelscope\]"):
        load_model("modelscope:someone/minimind-3")


def test_a_tokenizer_beside_the_file_is_found_and_ends_its_turns(v2_file: Path) -> None:
    tiny_tokenizer().save_pretrained(v2_file.parent)
    loaded = load_model(v2_file, config=HEADS)
    assert loaded.tokenizer is not None
    assert loaded.model.generation_config.eos_token_id == 2  # <|im_end|>
    assert loaded.model.generation_config.pad_token_id == 0
    # A padding token in the configuration would freeze that token's embedding.
    assert loaded.model.config.pad_token_id is None
    assert loaded.model.get_input_embeddings().padding_idx is None


def test_a_missing_tokenizer_is_an_error_where_it_is_needed(v2_file: Path) -> None:
    loaded = load_model(v2_file, config=HEADS)
    with pytest.raises(CheckpointError, match=r"Set model.tokenizer"):
        _ = loaded.tokenizer
    assert load_model(v2_file, config=HEADS, tokenizer=False).tokenizer is None
    with pytest.raises(CheckpointError, match=r"model.tokenizer=.*: does not exist"):
        load_model(v2_file, tokenizer="./nowhere", config=HEADS)
    with pytest.raises(CheckpointError, match="not a folder that holds a tokenizer"):
        load_model(v2_file, tokenizer=v2_file.parent, config=HEADS)


def test_a_tokenizer_with_more_tokens_than_the_embedding_is_refused(v2_file: Path) -> None:
    assert load_model(v2_file, tiny_tokenizer(40), HEADS).tokenizer is not None
    with pytest.raises(CheckpointError, match=r"has 41 tokens, but .* has 40 rows"):
        load_model(v2_file, tiny_tokenizer(41), HEADS)


def test_a_named_special_token_without_a_number_is_let_through_and_logged(
    v2_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny_tokenizer(40)
    tokenizer.unk_token = "<unk>"  # not in the vocabulary: transformers appends it as number 40
    tokenizer.add_special_tokens({"unk_token": "<unk>"})
    assert len(tokenizer) == 41
    assert load_model(v2_file, tokenizer, HEADS).tokenizer is tokenizer
    assert "<unk> (40); the model has no row" in caplog.text
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    with pytest.raises(CheckpointError, match=r"has 42 tokens"):
        load_model(v2_file, tokenizer, HEADS)


def test_a_damaged_tokenizer_is_named(v2_file: Path) -> None:
    (v2_file.parent / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer cannot be loaded"):
        load_model(v2_file, config=HEADS)


def test_reading_a_file_leaves_the_random_state_alone(v2_file: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(v2_file, config=HEADS, tokenizer=False)
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_loaded_in_the_dtype_asked_for(v2_file: Path) -> None:
    model = load_model(v2_file, config=HEADS, tokenizer=False, dtype=torch.float64).model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    stored = v2_state()["model.layers.1.mlp.up_proj.weight"].double()
    assert torch.equal(model.state_dict()["model.layers.1.mlp.up_proj.weight"], stored)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("folder", [TOKENIZER, *TOKENIZERS], ids=lambda folder: folder.name)
def test_published_tokenizers_end_turns_and_survive_an_export(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "full_sft_16.pth"
    torch.save(v2_state(vocab=6400), path)
    loaded = load_model(path, folder, HEADS)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    again = load_model(save_hf(loaded.model, tokenizer, tmp_path / "export"))
    assert again.tokenizer is not None
    assert again.tokenizer.chat_template == tokenizer.chat_template
    text = "<|im_start|>user\n你好，世界 hello 123<|im_end|>\n"
    assert again.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.model.generation_config.eos_token_id == end_of_turn_id(tokenizer)


@pytest.mark.parametrize(
    "name", ["\u4e2d/\u6587", "a..b", "a--b/c", "x" * 97, "x" * 5000, "a/b.", "model.git"]
)
def test_a_name_that_no_hub_takes_is_a_file_that_does_not_exist(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"model.path=.* does not exist"):
        load_model(name)
    assert not HUB_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["gpt2", "jingyaogong/MiniMind2", "a/b.c-d_e", "_x/0"])
def test_what_a_hub_takes_for_a_name_is_one(name: str) -> None:
    assert HUB_NAME.fullmatch(name)


def test_a_fault_of_a_hubs_model_is_not_told_as_one_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetched(name: str) -> Any:
        return {"num_hidden_layers": 10**9}, {}

    monkeypatch.setattr(hub.PreTrainedConfig, "get_config_dict", fetched)
    with pytest.raises(CheckpointError) as caught:
        hub.read_settings("some/name")
    assert str(caught.value) == (
        "model.path=some/name: config.json has num_hidden_layers=1000000000, "
        "and no model has so many"
    )
