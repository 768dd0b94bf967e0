"""Every key with every sort of odd value: a configuration, or an error that names the key."""

from __future__ import annotations

import contextlib
import copy
import io
import random
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from minimind_dpo.config.check import Machine, validate
from minimind_dpo.config.compose import compose, compose_hydra
from minimind_dpo.config.schema import schema_keys
from minimind_dpo.options.problem import ConfigError

pytestmark = pytest.mark.slow

ODD = [
    *("null", "true", "'true'", "0", "-1", "1", "2", "1.5", "-0.0", "1e400", "-1e400", "nan"),
    *("inf", "1_000", "0x10", "9223372036854775808", "1e-40", "1e23", "''", "' '", "abc", "中文"),
    *("auto", "none", "'a b'", "a/b", "../a", "~", "'${seed}'", "'${nowhere}'", "'${'", "???"),
    *("'???'", "[]", "[1]", "[1,2]", "[null]", "[a,b]", "[[1]]", "{}", "{a:1}", "{a:{b:2}}"),
    *("'{hours:1}'", "'00:00:00:01'", "\\n", "'\\x00'", "1,2", "range(1,3)", "x" * 300, "'a=b'"),
    *("'é'", "\ud800", "[", "'[", "$(ls)", "@file", "sum(1,2)", "'none'", "99999999999"),
]
FREE = ("model.config", "logger.options", "data.columns", "data.template_options")
GROUPS = ("experiment", "logger", "evaluate", "judge", "model", "data", "hydra/launcher", "sweep")


def overrides(draw: random.Random) -> list[str]:
    """Of each key, each value once, plain or with a sign; of groups and free keys as well."""
    keys = list(schema_keys())
    pairs = [(key, value) for key in keys for value in ODD]
    pairs += [(group, value) for group in GROUPS for value in ODD]
    pairs += [(f"{free}.{leaf}", v) for free in FREE for leaf in ("a", "é", "") for v in ODD]
    signs = ("", "", "", "", "", "+", "++", "~")
    return [f"{draw.choice(signs)}{key}={value}" for key, value in pairs]


def quicken(base: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Hydra compose once, and put keys on top, a tenth of the work."""
    composed = compose_hydra(base, with_hydra=False)
    whole, loader = hydra.compose, ConfigLoaderImpl

    def quick(name: str, overrides: list[str], return_hydra_config: bool) -> Any:
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(override.key_or_group in GROUPS for override in parsed):
            return whole(name, overrides, return_hydra_config=return_hydra_config)
        loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
        config = copy.deepcopy(composed)
        loader._apply_overrides_to_config(parsed, config)
        return config

    monkeypatch.setattr("minimind_dpo.config.compose.hydra_compose", quick)
    monkeypatch.setattr("minimind_dpo.config.compose.primary_config", lambda *_: "config")


def outcome(given: list[str]) -> tuple[bool, str]:
    """Whether overrides are let through, and what is wrong with the way in which they are not."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            config = compose(given)
            validate(config, machine=Machine(cuda=0, mps=False))
    except ConfigError as error:
        keys = [word.split("=")[0].lstrip("+~") for word in given]
        told = any(key.split(".")[0] in str(error) for key in keys)
        return False, "" if told and len(str(error)) < 3000 else f"not told: {str(error)[:300]}"
    except BaseException as error:  # what a fuzzer is after
        return False, f"{type(error).__name__}: {str(error)[:300]}"
    return True, printed.getvalue()[:300]


def write_named(folder: Path) -> list[str]:
    """Overrides that are sound by themselves."""
    (folder / "model.pth").write_bytes(b"weights")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "pairs.jsonl").write_text("{}\n")
    return ["model.path=model.pth", "model.tokenizer=tokenizer", "data.train=pairs.jsonl"]


def test_every_odd_value_of_every_key_is_let_through_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, draw = write_named(tmp_path), random.Random(12)
    quicken(base, monkeypatch)
    assert outcome(base) == (True, "")
    tried = overrides(draw)
    faults: dict[str, str] = {}
    passed = 0
    for override in tried:
        through, fault = outcome([*base, override])
        passed += through
        if fault:
            faults[override] = fault
    print(f"{len(tried)} overrides, {passed} let through, {len(faults)} broken")
    assert faults == {}
