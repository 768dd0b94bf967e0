"""A full disk, and every sort of wrong input, through the whole program."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow


def test_a_full_disk_ends_the_run_with_the_state_before_kept(cli: Any) -> None:
    code, text = cli.run("run_dir=run", "trainer.max_epochs=3", "trainer.max_steps=4")
    assert code == 0, text
    states = cli.folder / "run" / "checkpoints"
    before = sorted(path.name for path in states.glob("step-*.ckpt"))
    os.remove(cli.folder / "run" / "summary.json")
    # States have about 400 kB; nothing else in a run folder has more than 50.
    args = ["run_dir=run", "trainer.max_epochs=3", "resume=auto", "resume_with_changes=true"]
    code, text = cli.run(*args, file_size_limit=200_000)
    assert code == 1, text
    assert "could not be saved: the disk is full" in text
    assert "Traceback" not in text
    assert sorted(path.name for path in states.iterdir() if path.name.startswith("step-")) == before
    code, text = cli.run(*args)
    assert code == 0, text


def test_a_damaged_state_is_named_and_the_one_before_is_used(cli: Any) -> None:
    assert cli.run("run_dir=run", "trainer.val_check_interval=1.0")[0] == 0
    whole, curve = cli.weights("run"), cli.curve("run")
    newest = max((cli.folder / "run" / "checkpoints").glob("step-*.ckpt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    code, text = cli.run("run_dir=run", "trainer.val_check_interval=1.0", "resume=auto")
    assert code == 0, text
    assert f"{newest.name} is damaged" in text
    assert all((whole[name] == weight).all() for name, weight in cli.weights("run").items())
    assert cli.curve("run") == curve


def test_other_data_tokenizer_reference_or_loss_is_refused_by_name(cli: Any) -> None:
    assert cli.run("run_dir=run", "trainer.max_steps=2")[0] == 0
    lines = (cli.folder / "train.jsonl").read_text().splitlines(keepends=True)
    (cli.folder / "less.jsonl").write_text("".join(lines[:40]))
    for changed, named in (
        ("data.train=less.jsonl", "data: train was"),
        ("data.max_length=90", "tokenizer: rules was"),
        ("reference.dtype=float64", "reference: dtype was float32, is now float64"),
        ("loss.beta=0.2", "loss: beta was 0.1, is now 0.2"),
    ):
        code, text = cli.run("run_dir=run", "resume=auto", changed)
        assert code == 2, text
        assert named in text
        assert "resume_with_changes=true" in text
        assert "Traceback" not in text


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.just([]),
    st.just([1]),
    st.just({}),
    st.just([{"role": "user"}]),
    st.just([{"content": "x"}]),
)
"""Nothing that is a prompt or an answer."""

BAD_LINES = st.one_of(
    st.sampled_from(["{", "[1, 2", "nonsense", '"text"', "17", "null", "\x00", '{"a":1}{"b":2}']),
    st.builds(
        lambda key, value: json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", key: value}),
        st.sampled_from(["chosen", "rejected"]),
        JUNK,
    ),
    st.builds(
        lambda key: json.dumps({k: "x" for k in ("prompt", "chosen", "rejected") if k != key}),
        st.sampled_from(["chosen", "rejected"]),
    ),
)

BAD_OVERRIDES = st.one_of(
    st.sampled_from(
        [
            "loss.bta=1",
            "loss.beta=abc",
            "loss.beta=-1",
            "loss.beta=nan",
            "trainer.devcies=2",
            "trainer.max_steps=abc",
            "trainer.max_epochs=0",
            "trainer.precision=bf16-true",
            "trainer.devices=0",
            "trainer.devices=[0,0]",
            "data.batch_size=0",
            "optim.lr=0",
            "optim.betas=[1]",
            "schedule.name=cosin",
            "data.layout=wide",
            "model.path=nowhere.pth",
            "data.train=nowhere.jsonl",
            "data.val=train.jsonl",
            "reference.mode=none",
            "seed=-1",
            "loss.type=dp",
            "loss.type=[]",
            "name=../evil",
            "name=a/b",
            "resume=nowhere",
            "trainer.max_time=soon",
            "export.which=best data.val=null data.val_fraction=0",
            "loss=nothing",
            "experiment=nothing",
            "loss.beta",
            "=1",
            "loss.beta={",
            "~loss.beta",
            "data.max_length=1",
            "trainer.strategy=fsdp",
            "logger=nowhere",
            "sweep.jobs=0",
            "guard.rank_timeout=0",
            "trainer.limit_train_batches=0",
            "model.dtype=float16",
            "data.val_fraction=1.5 data.val=null",
            "loss.weights=[1,2]",
            "optim.fused=maybe",
            "run_dir=train.jsonl",
            "output_dir=''",
            "data.cache_dir=train.jsonl/x",
        ]
    ),
    st.builds(
        "{}={}".format,
        st.sampled_from(["loss.beta", "optim.lr", "data.batch_size", "seed"]),
        st.sampled_from(["-3", "[]", "{}", "x", "null", "-inf", "[1,2]", "'1 2'"]),
    ),
)


FLAGS = st.sampled_from([[], ["-m"], ["-m"], ["--cfg", "job"]])
"""What a wrong override is given with; `--cfg` looks at names and types, not at values."""

NAMES_AND_TYPES = (
    "Value ",
    "there is no such",
    "not Optional",
    "cannot be read",
    "names no key",
    "was deleted",
    "Ambiguous value",
    "Config group override",
)


class Trap:
    """Makes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("the-code-ran", "w")


def check_refused(cli: Any, arguments: list[str], named: str, before: set[Path]) -> None:
    code, text = cli.run(*arguments)
    context = (arguments, text)
    assert code == 2, context
    assert "Traceback" not in text, context
    assert "Error" in text, context
    assert named in text, context
    written = {path for path in cli.folder.rglob("*") if path.is_file()} - before
    kept = [p for p in written if not p.name.startswith("out-") and "cache" not in p.parts]
    assert kept == [], context


def test_two_hundred_malformed_inputs_end_with_two_and_a_place(cli: Any) -> None:
    before = {path for path in cli.folder.rglob("*") if path.is_file()}
    good = (cli.folder / "train.jsonl").read_text().splitlines()
    state = _state(cli)
    write_models(cli.folder)
    native = (cli.folder / "native.pth").read_bytes()
    before |= {path for path in cli.folder.rglob("*") if path.is_file()}
    counts = {"data": 0, "override": 0, "state": 0, "model": 0}
    quiet = settings(
        max_examples=60,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @quiet
    @given(line=BAD_LINES, at=st.integers(0, 44))
    def data_files(line: str, at: int) -> None:
        counts["data"] += 1
        text = "\n".join([*good[:at], line, *good[at:]])
        (cli.folder / "bad.jsonl").write_text(text)
        before.add(cli.folder / "bad.jsonl")
        check_refused(cli, ["data.train=bad.jsonl"], f"bad.jsonl:{at + 1}", before)

    @quiet
    @given(override=BAD_OVERRIDES, flags=FLAGS, behind=st.booleans())
    def overrides(override: str, flags: list[str], behind: bool) -> None:
        counts["override"] += 1
        key = override.split("=")[0].lstrip("~+")
        words = override.split(" ")
        if "--cfg" in flags:
            _, text = cli.run(*words)
            flags = flags if any(sign in text for sign in NAMES_AND_TYPES) else []
        words = [*words, *flags] if behind else [*flags, *words]
        check_refused(cli, words, key, before)

    @quiet
    @given(what=st.sampled_from(["model.path", "reference.path"]), data=st.data())
    def models(what: str, data: st.DataObject) -> None:
        counts["model"] += 1
        misfit = data.draw(st.sampled_from(["", "", *MISFITS]))
        if misfit:
            key, wrong, named = MISFITS[misfit]
            words = f"{key.format(what)}={wrong}".split()
        else:
            path, named = cli.folder / "bad.pth", "bad.pth"
            path.write_bytes(damaged(native, random.Random(data.draw(st.integers(0, 10**6)))))
            before.add(path)
            words = [f"{what}=bad.pth"]
        if what == "model.path" and "model.tokenizer" not in words[0]:
            words.append("model.tokenizer=model")
        check_refused(cli, words, named, before)

    @quiet
    @given(seed=st.integers(0, 10**6))
    def states(seed: int) -> None:
        counts["state"] += 1
        path = cli.folder / "bad.ckpt"
        path.write_bytes(damaged(state, random.Random(seed)))
        before.add(path)
        check_refused(cli, ["resume=bad.ckpt"], "bad.ckpt", before)

    data_files()
    overrides()
    models()
    states()
    print(counts)
    assert sum(counts.values()) >= 200


MISFITS = {
    "trap": ("{}", "trap.pth", "trap.pth cannot be read"),
    "bare trap": ("{}", "bare.pth", "bare.pth cannot be read"),
    "trap in a folder": ("{}", "trapped", "trapped"),
    "of no dialect": ("{}", "unknown.pth", "unknown.pth: no MiniMind generation"),
    "key missing": ("{}", "missing.pth", "model.layers.0.mlp.up_proj.weight"),
    "key left over": ("{}", "left.pth", "of.my.own"),
    "shape": ("{}", "shape.pth", "model.layers.0.mlp.up_proj.weight"),
    "folder's shape": ("{}", "shaped", "transformer.ln_f.weight"),
    "folder cut short": ("{}", "cut", "cut"),
    "not finite": ("{}", "nan.pth", "model.norm.weight"),
    "nowhere": ("{}", "nowhere/there", "nowhere/there"),
    "tokenizer": ("model.tokenizer", "large", "has 259 tokens"),
    "tokenizer's code": ("model.tokenizer", "coded", "trust_remote_code"),
    "adapters": ("model.lora.r=2 model.lora.target_modules", "[nothing]", "target_modules"),
}
"""What is wrong: its key, its value, and what has to be told."""


def write_models(folder: Path) -> None:
    """Models and tokenizers that do not fit, each in its own way."""
    config = tf.LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    whole = tf.LlamaForCausalLM(config).state_dict()
    changed = "model.layers.0.mlp.up_proj.weight"
    less = {key: tensor for key, tensor in whole.items() if key != changed}
    norm = torch.full_like(whole["model.norm.weight"], float("nan"))
    for name, content in {
        "native": whole,
        "missing": less,
        "left": {**whole, "of.my.own": norm},
        "shape": {**whole, changed: torch.zeros(24, 15)},
        "nan": {**whole, "model.norm.weight": norm},
        "unknown": {"encoder.weight": norm},
        "trap": {"model.embed_tokens.weight": Trap()},
    }.items():
        torch.save(content, folder / f"{name}.pth")
    (folder / "bare.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trapped", "shaped", "cut", "large", "coded"):
        shutil.copytree(folder / "model", folder / name)
    (folder / "trapped" / "model.safetensors").unlink()
    shutil.copy(folder / "trap.pth", folder / "trapped" / "pytorch_model.bin")
    file = folder / "shaped" / "model.safetensors"
    weights = load_file(file) | {"transformer.ln_f.weight": torch.zeros(7)}
    save_file(weights, file, metadata={"format": "pt"})
    file = folder / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    tokenizer = tf.AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder / "large")
    file = folder / "coded" / "tokenizer_config.json"
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["code.Own", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    (folder / "coded" / "config.json").unlink()
    (folder / "coded" / "code.py").write_text("open('the-code-ran', 'w')")


def _state(cli: Any) -> bytes:
    assert cli.run("run_dir=run", "trainer.max_steps=1")[0] == 0
    return max((cli.folder / "run" / "checkpoints").glob("step-*.ckpt")).read_bytes()


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Cut short, overwritten, empty, or of another sort."""
    kind = draw.randrange(4)
    if kind == 0:
        return data[: draw.randrange(len(data) - 100)]
    if kind == 1:
        start = draw.randrange(len(data) // 4, len(data) // 2)
        return data[:start] + draw.randbytes(5000) + data[start + 5000 :]
    if kind == 2:
        return draw.randbytes(draw.randrange(1, 2000))
    return draw.choice([b"", b"PK\x03\x04", b"{}", b"\x80\x04}.", b"#!/bin/sh\n"])
