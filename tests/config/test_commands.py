"""Commands beside training: their own keys, the configuration beside them, and what is refused."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from minimind_dpo.chat import ChatKeys
from minimind_dpo.config.commands import read_command, run_folder
from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import CONF_DIR
from minimind_dpo.evaluate import EvaluateKeys
from minimind_dpo.export import ExportKeys
from minimind_dpo.options.problem import ConfigError

COMMANDS = {"chat": ChatKeys, "evaluate": EvaluateKeys, "export": ExportKeys}


def keys(*arguments: str) -> Any:
    return read_command(arguments, "export", ExportKeys, "usage")


def configured(*arguments: str) -> Config:
    command = keys(*arguments)
    return command.config(run_folder(command.own.run) if command.own.run else None)


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        configured(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_file_of_a_command_has_its_keys_and_their_defaults(name: str) -> None:
    own = COMMANDS[name]()
    in_file = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "commands" / f"{name}.yaml"))
    assert in_file == {item.name: getattr(own, item.name) for item in fields(own)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_key_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"minimind_dpo.{name}")
    with pytest.raises(SystemExit) as end:
        module.run(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m minimind_dpo.{name}" in shown
    for item in fields(COMMANDS[name]):
        assert f"\n{item.name}: " in shown


def test_own_keys_are_taken_out_and_several_values_are_a_list() -> None:
    command = keys("run=RUN", "format=hf,gguf", "seed=3")
    assert (command.own.run, command.own.format) == ("RUN", ["hf", "gguf"])
    assert command.line.overrides == ("seed=3",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn=a"], "runn=a: there is no such key. Did you mean run?"),
        (["formatt=hf"], "formatt=hf: there is no such key. Did you mean format?"),
        (["format=gguff"], "format=gguff: must be one or several of hf, native, gguf"),
        (["dtype=float61"], "dtype=float61: must be one of auto, float32, float16, bfloat16"),
        (["loss.bta=1", "model.path=x"], "loss.bta=1: there is no such key. Did you mean"),
        (["--format=hf"], "--format: there is no such flag"),
        (["-m", "seed=1,2"], "-m: is for python -m minimind_dpo.train"),
        ([], "run: is missing, and so is model.path"),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_key(arguments: list[str], words: str) -> None:
    assert words in refused(*arguments)


def test_a_run_is_found_by_its_folder_and_a_near_name_is_told(tmp_path: Path) -> None:
    run = tmp_path / "2026-01-01_dpo"
    (run / "checkpoints").mkdir(parents=True)
    assert "has no config.yaml" in refused(f"run={run}")
    (run / "config.yaml").write_text(to_yaml(compose(["loss.beta=0.25", "seed=5", "name=mine"])))
    assert run_folder(str(run / "checkpoints")) == run
    assert f"Did you mean {run}?" in refused(f"run={tmp_path}/2026-01-01_dp")
    config = keys(f"run={run}", "seed=7").config(run)
    assert (config.loss.beta, config.seed, config.name) == (0.25, 7, "mine")
    assert "names a run, and model.path=x something else" in refused(f"run={run}", "model.path=x")
