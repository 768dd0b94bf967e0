"""Typos and wrong types are named, with their key, before anything is loaded."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import pytest
from composed import composed
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_dpo.config.compose import compose, register_schemas
from minimind_dpo.config.explain import OTHER_NAMES
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR
from minimind_dpo.options.problem import ConfigError


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.bta=0.2", "loss.bta=0.2: there is no such key. Did you mean loss.beta?"),
        ("+loss.bta=0.2", "loss.bta=0.2: there is no such key. Did you mean loss.beta?"),
        ("+lr=0.1", "lr=0.1: there is no such key. Did you mean optim.lr?"),
        (
            "trainer.devcies=4",
            "trainer.devcies=4: there is no such key. Did you mean trainer.devices?",
        ),
        (
            "trainer.overfit_batches=2",
            "trainer.overfit_batches=2: there is no such key. Use trainer.limit_train_batches=N "
            "data.shuffle=false.",
        ),
        ("expriment=demo", "expriment=demo: there is no such key. Did you mean experiment?"),
        (
            "loss.beta=abc",
            "loss.beta=abc: Value 'abc' of type 'str' could not be converted to Float.",
        ),
        ("loss.beta=null", "loss.beta=null: field 'loss.beta' is not Optional."),
        ("trainer.max_steps=abc", "could not be converted to Integer"),
        ("data.shuffle=perhaps", "data.shuffle=perhaps: Value 'perhaps' is not a valid bool"),
        ("optim.betas=[a,b]", "optim.betas=[a,b]: Value 'a' of type 'str'"),
        ("logger=tb", "Available options in 'logger': csv none swanlab tensorboard wandb."),
        ("logger.options.flush=1", "keyword: +logger.options.flush=1"),
        ("loss=1", "loss=1: takes the name of one file of this group. For example: loss=default"),
        ("model=[1,2]", "model=[1,2]: takes the name of one file of this group."),
        ("logger=[null]", "logger=[null]: takes the name of one file of this group."),
        ("logger=[csv,wandb]", "logger=[csv,wandb]: takes the name of one file of this group."),
        ("judge='${'", "judge=${: takes the name of one file of this group. For example: judge="),
        ("hydra/launcher=[1]", "hydra/launcher=[1]: takes the name of one file of this group."),
        ("sweep=2", "sweep=2: takes the name of one file of this group. For example: sweep=beta"),
        ("model.config='${seed}'", "model.config: cannot be resolved (Cannot assign int"),
        ("optim.betas='${seed}'", "optim.betas: cannot be resolved (Invalid value assigned"),
        ("trainer.gpus=1", "trainer.gpus=1: there is no such key. Did you mean trainer.devices?"),
        ("optimizer=adam", "There is one, AdamW: its keys are optim.lr"),
        ("sweep=beta", "sweep=beta: is chosen with a plus. Write -m +sweep=beta"),
        ("sweep.jobs=2", "-m hydra/launcher=joblib hydra.launcher.n_jobs=N"),
        ("~seed", "seed: was deleted."),
        ("name=${nowhere}", "name: cannot be resolved (Interpolation key 'nowhere' not found)."),
        ("seed", "missing EQUAL"),
        ("loss.beta=0.1,0.2", "loss.beta=0.1,0.2: is several values. Add -m for one job each;"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert message in str(caught.value)


def test_one_spelling_reaches_the_program_for_each_value() -> None:
    config = compose(
        ["data.train=a.jsonl", "loss.type=dpo", "loss.weights=2", "trainer.precision=bf16"]
    )
    assert config.data.train == ["a.jsonl"]
    assert config.data.val == []
    assert config.loss.type == ("sigmoid",)  # DPO's own loss, by its other name
    assert config.loss.weights == (2,)
    assert config.trainer.precision == "bf16-mixed"
    assert [compose([f"trainer.precision={p}"]).trainer.precision for p in (16, 32, 64)] == [
        "16-mixed",
        "32-true",
        "64-true",
    ]


def test_architecture_fields_and_further_logger_options_are_free() -> None:
    config = compose(["model.config.num_attention_heads=4", "+logger.options.comment=x"])
    assert config.model.config == {"num_attention_heads": 4}
    assert config.logger.options["comment"] == "x"


def test_folders_are_left_to_this_program() -> None:
    """Hydra makes no folder for a run, keeps the working folder, and numbers a sweep's jobs."""
    register_schemas()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", ["name=two", "hydra.job.num=3"], return_hydra_config=True)
        hydra = cfg.hydra
        assert (hydra.run.dir, hydra.output_subdir, hydra.job.chdir) == (".", None, False)
        dated = r"outputs/sweeps/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_two"
        assert re.fullmatch(dated, hydra.sweep.dir)
        assert hydra.sweep.subdir == "3"
        assert hydra.job_logging.root is None


def test_the_sweep_preset_is_a_grid_over_beta() -> None:
    register_schemas()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = hydra_compose("config", ["+sweep=beta"], return_hydra_config=True)
    assert dict(cfg.hydra.sweeper.params) == {"loss.beta": "0.05,0.1,0.2,0.5"}


def test_help_names_every_choice_that_ships() -> None:
    text = (CONF_DIR / "hydra/help/minimind_dpo.yaml").read_text(encoding="utf-8")
    for group in ("experiment", "logger", "sweep", "evaluate", "judge"):
        for path in (CONF_DIR / group).glob("*.yaml"):
            assert path.stem in text


def test_names_of_other_trainers_lead_to_keys_that_there_are() -> None:
    assert set(OTHER_NAMES.values()) <= set(schema_keys())
    assert not set(OTHER_NAMES) & {key.rpartition(".")[2] for key in schema_keys()}


def test_configuration_answers_without_torch() -> None:
    """A typo must not wait for torch: 0.4 s instead of 2 s."""
    code = "import sys, minimind_dpo.config.compose; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


KEYS = st.sampled_from([*schema_keys(), "experiment", "logger", "loss.bta", "hydra.mode"])
VALUES = st.one_of(
    st.integers(-3, 2000).map(str),
    st.floats(allow_nan=True).map(str),
    st.sampled_from(
        ["null", "true", "[]", "[1,2]", "{a:1}", "''", "demo", "none", "auto", "${x}", "???"]
    ),
    st.text(max_size=8),
)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "+", "++", "~"]), KEYS, VALUES), max_size=3))
def test_random_overrides_give_a_configuration_or_its_error(
    parts: list[tuple[str, str, str]],
) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(compose([f"{sign}{key}={value}" for sign, key, value in parts]), Config)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.path=a", "loss.beta=0.3", "trainer.devices=[0,1]", "callbacks.samples.every=3"],
        [
            "experiment=demo",
            "data.columns.prompt=question",
            "loss.type=[sigmoid,sft]",
            "name='ä b'",
        ],
        ["experiment=hf", "logger=csv", "model.config.num_attention_heads=4"],
        ["+logger.options.comment=x", "seed=7"],
    ],
)
def test_the_shortcut_of_other_tests_composes_the_same(overrides: list[str]) -> None:
    assert composed(overrides) == compose(overrides)
