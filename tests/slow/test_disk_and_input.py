"""A full disk, and every sort of wrong input, through the whole program."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

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
            "loss.type=dpo",
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
    before |= {path for path in cli.folder.rglob("*") if path.is_file()}
    counts = {"data": 0, "override": 0, "checkpoint": 0}
    quiet = settings(
        max_examples=70,
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
    @given(override=BAD_OVERRIDES)
    def overrides(override: str) -> None:
        counts["override"] += 1
        key = override.split("=")[0].lstrip("~+")
        named = key if "." in key and not override.endswith("{") else ""
        check_refused(cli, override.split(" "), named, before)

    @quiet
    @given(seed=st.integers(0, 10**6))
    def checkpoints(seed: int) -> None:
        counts["checkpoint"] += 1
        path = cli.folder / "bad.ckpt"
        path.write_bytes(damaged(state, random.Random(seed)))
        before.add(path)
        check_refused(cli, ["resume=bad.ckpt"], "bad.ckpt", before)

    data_files()
    overrides()
    checkpoints()
    print(counts)
    assert sum(counts.values()) >= 200


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
