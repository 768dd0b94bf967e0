"""Values are checked all at once: key, value, why, what to do."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from composed import composed
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_dpo.config.check import Machine, validate
from minimind_dpo.config.compose import to_yaml
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.options.limits import value_at
from minimind_dpo.options.problem import ConfigError


def test_every_problem_is_reported_at_once(files: list[str]) -> None:
    config = composed(
        [
            *files,
            "optim.lr=-1",
            "data.layout=prefixshared",
            "loss.type=sigmod",
            "trainer.precision=bf16-true",
            "resume=nowhere",
        ]
    )
    with pytest.raises(ConfigError) as caught:
        validate(config, machine=Machine(cuda=0, mps=False))
    first, *lines = str(caught.value).splitlines()
    assert first == "5 problems in the configuration:"
    assert lines[0].startswith("  resume=nowhere: does not exist.")
    assert lines[1] == (
        "  data.layout=prefixshared: must be one of prefix_shared, packed, padded. "
        "Did you mean prefix_shared?"
    )
    assert lines[2].startswith("  loss.type=sigmod: is not a loss")
    assert lines[2].endswith("Did you mean sigmoid?")
    assert lines[3] == "  optim.lr=-1.0: must be above 0."
    assert lines[4].startswith("  trainer.precision=bf16-true: is refused: updates of DPO's size")


def test_a_library_that_this_torch_lacks_is_refused(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    validate(composed(files))
    with pytest.raises(ConfigError, match=r"matmul_library=onednn: is not in this build of torch"):
        validate(composed([*files, "model.matmul_library=onednn"]))


def test_what_is_missing_comes_with_a_command_that_would_do(problems: Any) -> None:
    found = problems([])
    assert found.keys() == {"model.path", "data.train"}
    assert "python -m minimind_dpo.train model.path=full_sft_768.pth" in found["model.path"]


@pytest.mark.parametrize(
    ("overrides", "key", "message"),
    [
        ("loss.beta=-1", "loss.beta", "must be above 0"),
        ("loss.beta=nan", "loss.beta", "must be above 0"),
        ("loss.type=[sigmoid,sft] loss.weights=[1]", "loss.weights", "1 values for 2"),
        ("loss.type=ipo reference.mode=none", "reference.mode", "loss.type=ipo reads a reference"),
        ("loss.type=simpo", "reference.mode", "Set reference.mode=none."),
        ("optim.lr=inf", "optim.lr", "must be above 0"),
        ("optim.betas=[0.9]", "optim.betas", "two numbers"),
        ("optim.betas=[0.9,1.0]", "optim.betas", "below 1"),
        ("optim.fused=maybe", "optim.fused", "auto, true or false"),
        ("optim.fused=true trainer.precision=16-mixed", "optim.fused", "scaler"),
        (
            "schedule.warmup_steps=5 schedule.warmup_ratio=0.1",
            "schedule.warmup_steps",
            "Give one of them",
        ),
        (
            "schedule.name=notebook schedule.warmup_ratio=0.1",
            "schedule.name",
            "Set schedule.warmup_ratio=0",
        ),
        (
            "trainer.max_epochs=null trainer.max_time={hours:2}",
            "schedule.name",
            "or use schedule.name=constant",
        ),
        (
            "trainer.max_epochs=-1 trainer.max_time={hours:2} schedule.name=constant "
            "schedule.warmup_ratio=0.2",
            "schedule.warmup_ratio",
            "Give schedule.warmup_steps",
        ),
        ("schedule.name=cosin", "schedule.name", "Did you mean cosine?"),
        ("data.batch_size=0", "data.batch_size", "must be a number of pairs (1 or more), or auto"),
        ("data.max_length=1", "data.max_length", "must be at least 2"),
        ("data.max_prompt_length=1024", "data.max_prompt_length", "below data.max_length=1024"),
        ("data.val_fraction=1.0", "data.val_fraction", "must be at least 0 and below 1"),
        ("data.train=5", "data.train", "must be a file, a glob"),
        ("data.train=dop.jsonl", "data.train", "Did you mean dpo.jsonl?"),
        ("data.train=*.txt", "data.train", "matches no file"),
        ("data.val=dpo.jsonl", "data.val", "is in data.train as well"),
        ("data.pad_to_max_length=true", "data.pad_to_max_length", "Set data.layout=padded"),
        ("model.path=full_stf_512.pth", "model.path", "Did you mean full_sft_512.pth?"),
        ("model.path=./no/where", "model.path", "nor does its folder no"),
        ("model.path=.", "model.path", "Name the file: model.path=full_sft_512.pth"),
        ("model.dtype=bfloat16", "model.dtype", "vanish in half-precision weights"),
        ("model.dtype=int8", "model.dtype", "float32, float64"),
        ("model.dropout=1.0", "model.dropout", "below 1"),
        ("reference.path=gone.pth", "reference.path", "does not exist"),
        ("reference.batch_tokens=0", "reference.batch_tokens", "at least 1"),
        ("name=a/b", "name", "folder's name"),
        ("name=..", "name", "folder's name"),
        ("output_dir=dpo.jsonl/x", "output_dir", "dpo.jsonl is not a folder"),
        ("seed=-1", "seed", "at most 4,294,967,295"),
        ("export.which=best data.val_fraction=0", "export.which", "nothing is validated"),
        ("callbacks.samples.every=0", "callbacks.samples.every", "must be val"),
        ("trainer.precision=8", "trainer.precision", "32-true, bf16-mixed, 16-mixed, 64-true"),
        ("trainer.precision=16-true", "trainer.precision", "Use 16-mixed"),
        ("trainer.precision=16-mixed", "trainer.precision", "needs a GPU"),
        ("trainer.max_time=2h", "trainer.max_time", "two hours: 00:02:00:00"),
        ("trainer.max_epochs=-1", "trainer.max_epochs", "leaves the run without an end"),
        ("trainer.max_steps=0", "trainer.max_steps", "trains nothing"),
        ("trainer.limit_train_batches=1.5", "trainer.limit_train_batches", "0.0 to 1.0"),
        ("trainer.val_check_interval=0", "trainer.val_check_interval", "1 or more"),
        ("trainer.strategy=fsdp", "trainer.strategy", "shards weights"),
        ("trainer.strategy=dpp", "trainer.strategy", "Did you mean ddp?"),
        ("trainer.accelerator=cuda", "trainer.accelerator", "is not on this machine"),
        ("trainer.devices=0", "trainer.devices", "must be a number of devices"),
        ("trainer.devices=[0,1]", "trainer.devices", "not for a CPU"),
        ("trainer.deterministic=perhaps", "trainer.deterministic", "true, false, warn"),
    ],
)
def test_a_wrong_value_is_named(
    overrides: str, key: str, message: str, files: list[str], problems: Any
) -> None:
    found = problems([*files, *overrides.split(" ")])
    assert message in found[key]


@pytest.mark.parametrize(
    "overrides",
    [
        "model.path=Qwen/Qwen3-0.6B",
        "model.path=gpt2 model.tokenizer=null",
        "loss.type=simpo reference.mode=none",
        "loss.type=[sigmoid,sft] loss.weights=[1.0,0.2]",
        "schedule.warmup_steps=5 schedule.warmup_ratio=0",
        "schedule.warmup_steps=5",
        "schedule.name=notebook",
        "trainer.precision=64-true model.dtype=float64",
        "trainer.max_epochs=-1 trainer.max_time={hours:2} schedule.name=constant",
        "trainer.max_time=00:02:00:00 trainer.val_check_interval=50",
        "trainer.devices=2 trainer.accelerator=cpu trainer.strategy=ddp",
        "data.train=*.jsonl data.val_fraction=0",
        "data.train=[dpo.jsonl,val.jsonl]",
        "resume=auto run_dir=outputs/train/mine",
        "optim.fused=true",
    ],
)
def test_what_is_right_passes(overrides: str, files: list[str], problems: Any) -> None:
    assert problems([*files, *overrides.split(" ")]) == {}


def test_devices_are_held_against_the_machine_and_the_launcher(
    files: list[str], problems: Any
) -> None:
    three = composed([*files, "trainer.devices=3"])
    assert "more than the 2 that torch sees" in problems(three, cuda=2)["trainer.devices"]
    index = composed([*files, "trainer.devices=[0,2]"])
    assert "more than the 2 that torch sees" in problems(index, cuda=2)["trainer.devices"]
    assert problems(composed([*files, "trainer.devices=[0,1]"]), cuda=2, world_size=2) == {}
    found = problems(composed([*files, "trainer.devices=1"]), world_size=2)
    assert "the launcher started 2 processes" in found["trainer.devices"]


def test_a_rank_that_no_device_has_is_refused(
    files: list[str], problems: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = problems(composed([*files, "trainer.devices=1"]))
    why = "LOCAL_RANK=1: in the environment is of no process of trainer.devices=1. Unset it."
    assert found == {"LOCAL_RANK": why}
    assert problems(composed([*files, "trainer.devices=2"])) == {}


def test_more_processes_than_cores_are_refused_on_a_cpu(files: list[str]) -> None:
    machine = Machine(cuda=0, mps=False, cores=4)
    validate(composed([*files, "trainer.devices=4"]), machine=machine)
    with pytest.raises(ConfigError, match="=1000: asks for more processes than the 4 cores of"):
        validate(composed([*files, "trainer.devices=1_000"]), machine=machine)


def test_compile_on_a_cpu_needs_a_compiler(
    files: list[str], problems: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*files, "model.compile=true", "trainer.accelerator=cpu"]
    monkeypatch.setattr("shutil.which", lambda name: "/bin/g++" if name == "g++" else None)
    assert problems(asked) == {}
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "C++ compiler" in problems(asked)["model.compile"]


def test_an_optional_package_that_is_missing_is_named_with_its_extra(
    files: list[str], problems: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed([*files, "logger=wandb", "model.lora.r=8", "reference.path=modelscope:a/b"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = problems(config)
    assert "pip install 'minimind-dpo[wandb]'" in found["logger"]
    assert "pip install 'minimind-dpo[lora]'" in found["model.lora.r"]
    assert "pip install 'minimind-dpo[modelscope]'" in found["reference.path"]


def test_nothing_is_written(files: list[str], tmp_path: Path, problems: Any) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert problems([*files, "output_dir=made/later", "data.layout=x"])
    assert sorted(tmp_path.rglob("*")) == before


RIGHT = composed(["model.path=gpt2", "data.train=hf:a/b"])
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=12),
    st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.sampled_from(["hours", "a"]), st.integers(-1, 3), max_size=2),
)


def _fits(old: Any, new: Any) -> bool:
    """Whether the schema would let `new` through where `old` is."""
    if isinstance(old, bool):
        return isinstance(new, bool)
    if isinstance(old, int | float):
        return isinstance(new, int | float) and not isinstance(new, bool)
    return isinstance(new, type(old))


FREE = {"trainer.devices", "trainer.fast_dev_run", "trainer.val_check_interval", "optim.fused"}
FREE |= {"callbacks.samples.every", "trainer.deterministic", "trainer.max_time"}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(list(schema_keys())), ANYTHING), min_size=1, max_size=4))
def test_random_values_pass_or_are_reported(changes: list[tuple[str, Any]]) -> None:
    config: Config = dataclasses.replace(RIGHT)
    for name in ("model", "data", "loss", "optim", "schedule", "reference", "trainer"):
        setattr(config, name, dataclasses.replace(getattr(RIGHT, name)))
    for key, value in changes:
        group, _, leaf = key.partition(".")
        if not leaf or "." in leaf or group in ("logger", "callbacks", "guard", "export", "sweep"):
            continue
        typed = value_at(RIGHT, key)
        if key in FREE or (typed is not None and _fits(typed, value)):
            setattr(getattr(config, group), leaf, value)
    with contextlib.suppress(ConfigError):
        validate(config, machine=Machine(cuda=0, mps=False))
        assert math.isfinite(config.optim.lr)
        assert to_yaml(config)


@pytest.mark.parametrize(
    ("overrides", "key", "why"),
    [
        (["evaluate=none", "evaluate.every=9"], "evaluate.every", "asks for verdicts without"),
        (["evaluate.text=nowhere.txt"], "evaluate.text", "is not a file"),
        (["judge=none", "judge.also=demo"], "judge.also", "Use judge.name=demo"),
        (["judge.also=pairs"], "judge.also", "is the first judge as well"),
        (["judge.name=pair"], "judge.name", "Did you mean pairs?"),
        (["evaluate.temperature=-1"], "evaluate.temperature", "must be at least 0"),
    ],
)
def test_a_verdict_that_cannot_be_made_is_refused(
    overrides: list[str], key: str, why: str, files: list[str], problems: Any
) -> None:
    found = problems([*files, *overrides])
    assert list(found) == [key]
    assert why in found[key]


def test_a_verdict_is_left_out_by_a_group_or_by_no_prompts(files: list[str], problems: Any) -> None:
    for off in ("evaluate=none", "evaluate.prompts=0", "evaluate.prompts=null"):
        assert problems([*files, off]) == {}
        assert not composed([*files, off]).evaluate.prompts
