"""Every shipped YAML composes, validates, agrees with the schema and explains each key."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR, Source, find_conf
from minimind_dpo.evaluation.options import NEEDS
from minimind_dpo.objective.losses.divergences import DIVERGENCES
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.options.limits import keys_of

NO_GROUPS = ("hydra", "sweep", "commands")
GROUPS = sorted(p for p in CONF_DIR.glob("*/*.yaml") if p.parent.name not in NO_GROUPS)
SHIPPED = sorted(p for p in CONF_DIR.rglob("*.yaml") if "hydra" not in p.parts)
CHOICES = [
    p for p in SHIPPED if p.parent.name in ("experiment", "logger", "sweep", "evaluate", "judge")
]
KEY = re.compile(r"\s*(?!- )[\w./]+:(\s|$)")


def _name(path: Path) -> str:
    return path.relative_to(CONF_DIR).as_posix()


@pytest.mark.parametrize("path", CHOICES, ids=_name)
def test_every_choice_composes_and_validates(
    path: Path, files: list[str], problems: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plus = "+" if path.parent.name == "sweep" else ""
    choice = [f"{plus}{path.parent.name}={path.stem}"]
    if path.parent.name == "experiment":
        choice.append("data.val=val.jsonl" if path.stem == "demo" else "data.val=null")
    config = compose([*choice, *files])
    # Optional packages are not what is tested here.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    # A judge that has to be told something says so.
    needs = NEEDS.get(path.stem, ()) if path.parent.name == "judge" else ()
    assert set(problems(config)) == {f"judge.{key}" for key in needs}


@pytest.mark.parametrize("path", SHIPPED, ids=_name)
def test_every_key_has_a_comment_of_its_own(path: Path) -> None:
    """A comment stands on the line above; sections of an experiment need none."""
    sections_pass = path.parent.name in ("experiment", "sweep", "conf")
    lines = path.read_text(encoding="utf-8").split("hydra:\n")[0].splitlines()
    lines = lines[lines.index("defaults:") + 1 :] if "defaults:" in lines else lines
    bare = [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if KEY.match(line)
        and not above.lstrip().startswith("#")
        and not (sections_pass and line.rstrip().endswith(":"))
    ]
    assert bare == []


@pytest.mark.parametrize("path", [p for p in GROUPS if p.parent.name != "experiment"], ids=_name)
def test_group_files_hold_the_keys_of_the_schema_and_no_others(path: Path) -> None:
    group = path.parent.name
    expected = {key for key in schema_keys() if key.startswith(f"{group}.")}
    leaves = _leaves(path, f"{group}.", expected)
    if f"{group}.defaults" in leaves:  # what it leaves out is in the group's default
        default = _leaves(path.parent / "default.yaml", f"{group}.", expected)
        leaves = leaves - {f"{group}.defaults"} | default
    assert leaves == expected


def test_the_top_level_file_holds_the_other_keys() -> None:
    groups = {path.parent.name for path in GROUPS}
    expected = {key for key in schema_keys() if key.split(".")[0] not in groups}
    found = _leaves(CONF_DIR / "config.yaml", "", expected)
    assert {key for key in found if not key.startswith(("hydra.", "defaults"))} == expected


def _leaves(path: Path, prefix: str, schema: set[str]) -> set[str]:
    """Dotted keys of a file, down to those that the schema leaves free."""
    found = set()

    def walk(node: object, key: str) -> None:
        if isinstance(node, dict) and key.removesuffix(".") not in schema:
            for name, child in node.items():
                walk(child, f"{key}{name}.")
        else:
            found.add(key.removesuffix("."))

    walk(OmegaConf.to_container(OmegaConf.load(path)), prefix)
    return found


def test_every_key_has_a_value_but_the_two_that_a_user_must_give() -> None:
    config = compose()
    assert (config.model.path, config.data.train) == ("", [])


def test_conf_and_dataclasses_have_the_same_defaults_in_every_group() -> None:
    config, defaults = compose(), Config()
    defaults.model.path, defaults.data.train = "", []  # required: "???" until they are given
    defaults.logger.options = config.logger.options  # keywords of the chosen logger's class
    assert config == defaults


def test_choices_of_f_divergence_are_the_functions_that_there_are() -> None:
    kinds = next(key for key in keys_of(LossOptions) if key.name == "f_divergence")
    assert set(kinds.limits[0].words) == set(DIVERGENCES)  # type: ignore[attr-defined]


def test_experiment_notebook_has_the_notebook_s_numbers() -> None:
    config = compose(["experiment=notebook"])
    data, trainer, schedule = config.data, config.trainer, config.schedule
    assert trainer.max_epochs == 1
    assert data.batch_size == 32
    assert config.optim.lr == 5e-4
    assert (trainer.accelerator, trainer.devices) == ("auto", 1)
    assert (data.num_workers, data.pin_memory, data.shuffle) == (1, True, False)
    assert trainer.accumulate_grad_batches == 8
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (1.0, "norm")
    assert (schedule.name, schedule.warmup_steps, schedule.warmup_ratio) == ("notebook", 0, None)
    assert trainer.log_every_n_steps == config.callbacks.micro_batches.log_every == 100
    assert config.callbacks.checkpoint.every_n_steps == 100
    assert config.callbacks.micro_batches.export_every == 100
    assert data.max_length == 1024
    assert config.loss.beta == 0.1
    assert (config.loss.reduction, data.layout) == ("padded_mean", "padded")
    assert data.pad_to_max_length
    assert data.drop_last
    assert config.model.dropout == 0.1


def test_experiment_smollm2_has_the_recipe_s_numbers() -> None:
    """Of alignment-handbook/recipes/smollm2/dpo/config_smol.yaml: 2 pairs x 8 passes x 8 GPUs."""
    config = compose(["experiment=smollm2"])
    data, trainer, schedule = config.data, config.trainer, config.schedule
    assert (config.loss.type, config.loss.beta, config.optim.lr) == (("sigmoid",), 0.5, 1e-6)
    assert (schedule.name, schedule.warmup_ratio, schedule.min_lr_ratio) == ("cosine", 0.1, 0.0)
    assert data.pairs * trainer.accumulate_grad_batches == 2 * 8 * 8
    assert (data.max_length, data.max_prompt_length, trainer.max_epochs) == (1024, 512, 2)
    assert (config.optim.weight_decay, trainer.gradient_clip_val) == (0.0, 1.0)


def test_the_help_names_every_experiment() -> None:
    text = (CONF_DIR / "hydra/help/minimind_dpo.yaml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +experiment +(.*)", text, flags=re.M)
    assert set(line.split(", ")) == {path.stem for path in CONF_DIR.glob("experiment/*.yaml")}


def test_a_resolved_configuration_reads_back_as_it_was(files: list[str]) -> None:
    config = compose(["experiment=minimind3", "model.config.num_attention_heads=4", *files])
    file = Path("config.yaml")
    file.write_text(to_yaml(config), encoding="utf-8")
    assert compose((), Source(file=file)) == config


def test_conf_is_found_inside_a_package_first_and_beside_it_else(tmp_path: Path) -> None:
    package = tmp_path / "minimind_dpo"
    with pytest.raises(FileNotFoundError, match="install minimind-dpo again"):
        find_conf(package)
    for folder in (tmp_path / "conf", package / "conf"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        assert find_conf(package) == folder
    assert CONF_DIR.is_absolute()
