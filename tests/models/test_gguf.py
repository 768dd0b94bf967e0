"""A GGUF file is the model: equal tensors and logits, and a vocabulary that is split alike."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden_support import Golden
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from minimind_dpo.demo import MODEL, TOKENIZER
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.gguf.architecture import architecture_of, metadata
from minimind_dpo.models.gguf.file import save_gguf
from minimind_dpo.models.gguf.modelfile import go_template, modelfile
from minimind_dpo.models.gguf.vocabulary import CONTROL, UNUSED, USER_DEFINED, vocabulary_of
from minimind_dpo.models.load import load_model

gguf = pytest.importorskip("gguf")

KNOWN = {
    "v1": "llama",
    "v2a": "llama",
    "v2": "llama",
    "hf_llama": "llama",
    "v3": "qwen3",
    "v3_half": "qwen3",
    "hf_qwen3": "qwen3",
    "v3_moe_top1": "qwen3moe",
    "v3_moe_top2": "qwen3moe",
    "v3_moe_fused": "qwen3moe",
    "hf_qwen3_moe": "qwen3moe",
}
UNKNOWN = ("v_learn", "v1_moe", "v2a_moe", "v2_moe")


def byte_level(rows: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, with as many tokens as a tiny model has rows."""
    vocabulary = {f"t{row}": row for row in range(rows)}
    inner = Tokenizer(models.BPE(vocabulary, [], unk_token="t0"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="t1")


@pytest.mark.parametrize("name", KNOWN)
def test_tensors_and_logits_are_equal_through_the_readers_of_gguf_and_transformers(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    path = tmp_path / "a.gguf"
    save_gguf(model, byte_level(model.config.vocab_size), path, dtype=torch.float32)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == KNOWN[name]
    numbers = metadata(model.config, KNOWN[name])
    assert numbers["attention.key_length"] == model.config.head_dim
    for key, value in numbers.items():
        field = reader.get_field(f"{KNOWN[name]}.{key}")
        assert field.contents() == pytest.approx(value, rel=1e-6), key
    # With the model's own configuration: transformers' reader leaves out the head size of qwen3.
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", config=copy.deepcopy(model.config), dtype="float32"
    )
    with torch.no_grad():
        assert torch.equal(back(g.input_ids).logits, model(g.input_ids).logits)


def test_rows_of_llama_s_heads_are_pairs_and_norms_stay_float32(
    golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden("v2")
    model = load_model(g.path, config=g.config, tokenizer=False).model
    save_gguf(model, byte_level(model.config.vocab_size), tmp_path / "a.gguf")
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert "output.weight" not in tensors  # tied
    assert tensors["output_norm.weight"].tensor_type.name == "F32"
    query = tensors["blk.0.attn_q.weight"]
    assert query.tensor_type.name == "F16"
    ours = model.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    half = model.config.head_dim // 2
    for row in range(3):  # rows 0, 1, 2 of the file: first of each half, then the second ...
        theirs = torch.from_numpy(query.data[row].copy())
        assert torch.equal(theirs, ours[row // 2 + half * (row % 2)].half())


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_llama_cpp_does_not_compute_is_refused(
    name: str, golden: Callable[[str], Golden], tmp_path: Path
) -> None:
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    with pytest.raises(CheckpointError, match=r"llama\.cpp has no architecture that computes what"):
        save_gguf(model, byte_level(model.config.vocab_size), tmp_path / "a.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "rope_type=yarn"),
        ("hidden_act", "gelu", "hidden_act=gelu"),
        ("attention_bias", True, "biases in attention"),
        ("use_sliding_window", True, "a sliding window"),
    ],
)
def test_settings_that_llama_cpp_does_not_have_are_refused(
    setting: str, value: object, why: str, golden: Callable[[str], Golden]
) -> None:
    g = golden("v3")
    model = load_model(g.path, config=g.config, tokenizer=False).model
    assert architecture_of(model) == "qwen3"
    setattr(model.config, setting, value)
    with pytest.raises(CheckpointError, match=why):
        architecture_of(model)


def test_a_tokenizer_is_written_token_for_token_with_its_kinds_and_template(
    tmp_path: Path,
) -> None:
    loaded = load_model(MODEL, TOKENIZER)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    vocabulary = vocabulary_of(tokenizer, len(tokenizer) + 2, [end])
    assert vocabulary.tokens[:-2] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert vocabulary.tokens[-1] == f"[PAD{len(tokenizer) + 1}]"
    assert vocabulary.kinds[-2:] == [UNUSED, UNUSED]
    assert vocabulary.kinds[end] == CONTROL
    assert vocabulary.kinds[tokenizer.convert_tokens_to_ids("<think>")] == USER_DEFINED
    assert (vocabulary.splitting, vocabulary.adds_bos) == ("smollm", False)
    assert vocabulary.eos == end
    save_gguf(loaded.model, tokenizer, tmp_path / "a.gguf", end_ids=[end], name="demo")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    template = reader.get_field("tokenizer.chat_template").contents()
    assert template == tokenizer.chat_template
    assert reader.get_field("tokenizer.ggml.merges").contents() == vocabulary.merges


def test_a_tokenizer_that_splits_text_in_an_unknown_way_is_refused() -> None:
    tokenizer = byte_level(9)
    inner = tokenizer.backend_tokenizer
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match=r"its pre_tokenizer .*Whitespace.* is none that"):
        vocabulary_of(tokenizer, 9, [1])


def _chatml(turns: list[dict[str, str]]) -> str:
    text = "".join(f"<s>{turn['role']}\n{turn['content']}</s>\n" for turn in turns)
    return f"{text}<s>assistant\n"


def test_the_template_of_go_has_the_text_between_turns_of_the_chat_template() -> None:
    template = go_template(_chatml)
    assert template is not None
    assert '{{ if eq $m.Role "system" }}<s>system\n{{ $m.Content }}' in template
    assert (
        "{{ if eq $i 0 }}<s>user\n{{ else if and $.System (eq $i 1) }}</s>\n<s>user\n" in template
    )
    assert "{{ if eq (len (slice $.Messages $i)) 1 }}</s>\n<s>assistant\n{{ else }}" in template
    text = modelfile("a.gguf", _chatml, ["</s>"], 512)
    assert text.startswith('FROM ./a.gguf\nTEMPLATE """{{ range')
    assert 'PARAMETER stop "</s>"\nPARAMETER num_ctx 512\n' in text


def test_a_template_that_changes_what_is_said_has_no_template_of_go() -> None:
    assert go_template(lambda turns: _chatml(turns).lower()) is None
    assert go_template(lambda turns: "{{" + _chatml(turns)) is None
    assert "TEMPLATE" not in modelfile("a.gguf", lambda turns: "", [], 512)
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("a.gguf", None, [], 512)


def test_the_demo_s_tokenizer_is_found_by_its_rule_and_minimind_s_by_theirs() -> None:
    assert vocabulary_of(AutoTokenizer.from_pretrained(TOKENIZER), 1280, []).splitting == "smollm"
    assert vocabulary_of(byte_level(4), 4, []).splitting == "gpt-2"
