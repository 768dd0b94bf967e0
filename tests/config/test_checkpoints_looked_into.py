"""A model, tokenizer, reference or state that a run would refuse is refused with the rest, by key.

Nothing in any of them is ever run.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minimind_dpo import train
from minimind_dpo.config.check import Machine, validate
from minimind_dpo.options.problem import ConfigError

HEADS = "model.config.num_attention_heads=4"


def save_tokenizer(folder: Path, words: int) -> None:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<end>"])}
    vocabulary |= {f"w{i}": i + 2 for i in range(words - 2)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>"
    ).save_pretrained(folder)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Hugging Face model, its native file, tokenizers and data; all sound."""
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained("model")
    save_tokenizer(tmp_path / "model", 40)
    save_tokenizer(tmp_path / "large", 41)
    torch.save(model.state_dict(), "full_sft_16.pth")
    rows = [{"prompt": f"w{n}", "chosen": "w1", "rejected": "w2"} for n in range(40)]
    (tmp_path / "dpo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def problems(*overrides: str) -> dict[str, str]:
    config = composed(["model.path=model", "data.train=dpo.jsonl", *overrides])
    try:
        validate(config, machine=Machine(cuda=0, mps=False), read_checkpoints=True)
    except ConfigError as error:
        return {problem.key: str(problem) for problem in error.problems}
    return {}


def test_what_is_sound_is_let_through(here: Path) -> None:
    assert problems() == {}
    native = ["model.path=full_sft_16.pth", "model.tokenizer=model", HEADS]
    assert problems(*native) == {}
    assert problems("reference.path=model", "model.lora.r=2") == {}
    assert problems(*native, "model.lora.target_modules=[q_proj]", "model.lora.r=2") == {}


def test_each_thing_that_does_not_fit_is_named_and_all_are_told_at_once(here: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2, 2)}, "unknown.pth")
    found = problems("model.tokenizer=large", "reference.path=unknown.pth", "loss.beta=-1")
    assert sorted(found) == ["loss.beta", "model.path", "reference.path"]
    assert "has 41 tokens, but the embedding of model.path=model has 40 rows" in found["model.path"]
    assert "no MiniMind generation has these keys: encoder" in found["reference.path"]
    found = problems("model.lora.r=2", "model.lora.target_modules=[q_porj]")
    assert "q_porj" in found["model.lora.target_modules"]
    assert "no tokenizer lies beside" in problems("model.path=full_sft_16.pth")["model.tokenizer"]
    assert "has no field model.config.n_heads" in problems("model.config.n_heads=2")["model.path"]
    found = problems("reference.path=nobody/nothing_here.pth")
    assert "does not exist" in found["reference.path"]


def test_a_reference_with_fewer_rows_than_the_tokenizer_is_refused(here: Path) -> None:
    config = LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    LlamaForCausalLM(config).save_pretrained("small")
    found = problems("reference.path=small")["reference.path"]
    assert "the embedding of reference.path=small has 30 rows" in found


def test_a_damaged_file_is_named(here: Path) -> None:
    whole = Path("full_sft_16.pth").read_bytes()
    flipped = bytearray(whole)
    flipped[3000] ^= 1
    for damaged in (whole[:-200], bytes(flipped), b"PK\x03\x04", b"{}"):
        Path("bad.pth").write_bytes(damaged)
        found = problems("model.path=bad.pth", "model.tokenizer=model", HEADS)
        assert "bad.pth" in found["model.path"]
        assert "bad.pth" in problems("reference.path=bad.pth")["reference.path"]


class Trap:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("the-code-ran", "w")


def zipped(path: Path) -> None:
    torch.save({"model.embed_tokens.weight": Trap()}, path)


def bare(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model.embed_tokens.weight": Trap()}))


@pytest.mark.parametrize("write", [zipped, bare])
def test_no_pickle_is_run_wherever_it_is_named(here: Path, write: Callable[[Path], None]) -> None:
    write(here / "trap.pth")
    shutil.copytree("model", "folder")
    (here / "folder" / "model.safetensors").unlink()
    write(here / "folder" / "pytorch_model.bin")
    for overrides, key in (
        (["model.path=trap.pth", "model.tokenizer=model"], "model.path"),
        (["model.path=folder"], "model.path"),
        (["reference.path=trap.pth"], "reference.path"),
        (["reference.path=folder"], "reference.path"),
    ):
        found = problems(*overrides)
        assert list(found) == [key], found
        assert "weights_only" not in found[key], "advice to run it"
        assert not Path("the-code-ran").exists()


@pytest.mark.parametrize("key", ["model.path", "model.tokenizer", "reference.path"])
def test_no_code_of_a_folder_is_run_unless_asked(here: Path, key: str) -> None:
    shutil.copytree("model", "own")
    code = "open('the-code-ran', 'w')\nraise ImportError('it ran')\n"
    (here / "own" / "code.py").write_text(code)
    settings = json.loads(Path("own/config.json").read_text())
    settings |= {"model_type": "of_its_own"}
    settings["auto_map"] = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    Path("own/config.json").write_text(json.dumps(settings))
    settings = json.loads(Path("own/tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    Path("own/tokenizer_config.json").write_text(json.dumps(settings))
    found = problems(f"{key}=own")
    assert key in found, found
    assert "model.trust_remote_code=true" in found[key]
    assert not Path("the-code-ran").exists()


def test_the_program_ends_with_two_before_it_reads_data_or_makes_a_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("dpo.jsonl").write_text("{this would be told once data is read\n")
    before = sorted(here.rglob("*"))
    for flags in ([], ["-m"]):
        words = ["model.path=model", "data.train=dpo.jsonl", "model.tokenizer=large", *flags]
        monkeypatch.setattr("sys.argv", ["minimind-dpo", *words])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("Error: one problem in the configuration")
        assert "has 41 tokens" in told
        assert sorted(here.rglob("*")) == before


def test_a_chat_template_that_cannot_be_used_is_told_by_its_key(here: Path) -> None:
    """The model's tokenizer has none, so that plain text is all that can be trained on."""
    Path("broken.jinja").write_text("{% for m in messages %}")
    for override, key, reason in (
        ("data.chat_template=broken.jinja", "data.chat_template", "TemplateSyntaxError"),
        ("data.chat_template=broken.jnja", "data.chat_template", "is no file"),
        ("data.text_as_turns=true", "data.chat_template", "data.text_as_turns needs a chat"),
        ("data.template_options.a=1", "data.chat_template", "data.template_options needs a"),
        ("callbacks.samples.prompts=[w1,'']", "callbacks.samples.prompts", "is empty"),
        ("callbacks.judge=demo", "callbacks.judge", "there is no chat template"),
    ):
        found = problems(override)
        assert list(found) == [key], found
        assert reason in found[key]
