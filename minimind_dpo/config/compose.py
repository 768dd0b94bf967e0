"""Configuration: composed by Hydra from `conf/`, typed by `schema`, handed on as dataclasses.

An unknown key or a wrong type fails while the configuration is composed and is named; values are
checked afterwards by `minimind_dpo.config.check`. Nothing here imports torch, so that a typo and
`--help` answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Final

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.models.options import ModelOptions
from minimind_dpo.options.problem import ConfigError, Problem, nearest, shown

PACKAGE_DIR: Final = Path(__file__).resolve().parents[1]


def find_conf(package: Path) -> Path:
    """The folder of YAML files: inside an installed package, else beside it in a checkout.

    Raises:
        FileNotFoundError: It is at neither place.
    """
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"conf/config.yaml is neither in {package} nor beside it: the installation is incomplete, "
        "install minimind-dpo again"
    )


# Absolute: a relative one cannot be found from a console script.
CONF_DIR: Final = find_conf(PACKAGE_DIR)

_GROUPS: Final = ("experiment", "logger", "sweep", "evaluate", "judge")


def register_schemas() -> None:
    """Tell Hydra the types of every key, and OmegaConf the `package` resolver. Repeatable.

    `${package:demo/assets}` is the absolute path of a file that ships inside this package.
    """
    ConfigStore.instance().store(name="schema", node=_schema())
    OmegaConf.register_new_resolver(
        "package", lambda path: str(PACKAGE_DIR / str(path)), replace=True
    )


def _schema() -> DictConfig:
    node = OmegaConf.structured(Config)
    node.model = ModelOptions
    # `model.config.num_attention_heads=4` has to work without a `+`: its keys are the model's own.
    OmegaConf.set_struct(node.model.config, False)
    return node


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose `conf/` with command-line overrides, outside `hydra.main`.

    Args:
        overrides: As on the command line, `["experiment=demo", "loss.beta=0.2"]`, without flags.

    Raises:
        ConfigError: An unknown key or group, a value of the wrong type, an override that cannot be
            parsed (Hydra stops at the first of these), or an interpolation without a target.
    """
    register_schemas()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = hydra_compose("config", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError([compose_problem(error, overrides)]) from error
    return to_config(cfg)


def to_config(cfg: DictConfig) -> Config:
    """Plain dataclasses of a composed configuration, with one spelling for each value.

    A mandatory value that is still missing becomes an empty string, which `validate` reports
    together with everything else.

    Args:
        cfg: What Hydra composed; left as it is.

    Raises:
        ConfigError: A key was deleted, or an interpolation cannot be resolved.
    """
    try:
        cfg = OmegaConf.create(cfg)  # a copy
        for key in OmegaConf.missing_keys(cfg):
            OmegaConf.update(cfg, key, "")
        given = set(_given_keys(cfg))
        deleted = [Problem(key, "was deleted") for key in schema_keys() if key not in given]
        if deleted:
            raise ConfigError(deleted)
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        key = str(getattr(error, "full_key", None) or "configuration")
        raise ConfigError([Problem(key, f"cannot be resolved ({first})")]) from error
    assert isinstance(config, Config)
    unknown = sorted(given - set(schema_keys()))
    if unknown:
        # `+loss.bta=1` gets past the schema: OmegaConf lets a plus add attributes to dataclasses.
        raise ConfigError([_unknown_key(key, OmegaConf.select(cfg, key)) for key in unknown])
    return config


def from_yaml(text: str) -> Config:
    """The configuration that `to_yaml` wrote.

    Raises:
        ConfigError: It is not YAML, has an unknown key, lacks one, or has a wrong type.
    """
    try:
        cfg = OmegaConf.merge(_schema(), OmegaConf.create(text))
        assert isinstance(cfg, DictConfig)
        return to_config(cfg)
    except (OmegaConfBaseException, YAMLError) as error:
        key = str(getattr(error, "full_key", None) or "configuration")
        raise ConfigError([Problem(key, str(error).splitlines()[0])]) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, to be kept beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


_NAMED: Final = re.compile(
    r"\+{0,2}(experiment|model|data)(@\S+)?=|\+{0,2}(model\.path|data\.train)="
    r"|--config-(name|dir|path)|-c[ndp]\b"
)


def apply_default_experiment(overrides: Sequence[str], flags: Sequence[str] = ()) -> list[str]:
    """Add `experiment=demo` where the command line says nothing about what to train.

    It says something if it names `model.path`, `data.train`, an experiment, another file of the
    groups `model` or `data`, or a configuration folder or file of the user's own.

    Args:
        overrides: The command line's `key=value`.
        flags: The rest of it.
    """
    if any(_NAMED.match(argument) for argument in (*overrides, *flags)):
        return list(overrides)
    return [*overrides, "experiment=demo"]


def compose_problem(error: Exception, overrides: Sequence[str] = ()) -> Problem:
    """What Hydra or OmegaConf found wrong, with the key, its value, and the nearest valid key.

    Args:
        error: What was raised while the configuration was composed.
        overrides: The command line, to show the value that was given.
    """
    # Where Hydra looked for a group's options says nothing to a user.
    message = str(error).strip().split("\nConfig search path")[0]
    given = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    nameless = [override for override in overrides if re.match(r"[+~]*=", override)]
    if nameless:
        return Problem("command line", f"{nameless[0]} names no key", "Give key=value.")
    if isinstance(error, OverrideParseException):
        cause = re.sub(r"See https:.*|Error parsing override '.*'", "", message)
        why = f"cannot be read ({' '.join(cause.split())})"
        key, equals, value = error.override.lstrip("+~").partition("=")
        fix = "Give it as key=value; quote what holds brackets, quotes or spaces: key='\"a b\"'."
        return Problem(key or "command line", why, fix, value if equals else ...)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if unknown:
        key = unknown.group(1)
        return _unknown_key(key, given.get(key, ...))
    merging = re.match(r"Error merging override [+~]*([^=\s]+)", message)
    if merging and error.__cause__ is not None:
        key = merging.group(1)
        return Problem(key, str(error.__cause__).splitlines()[0], value=given.get(key, ...))
    message = re.sub(r"\s*\n\s*", " ", message)
    missing = re.search(r"Could not find '(\w+)/(.+)' (Available options in .*: )(.*)", message)
    if missing:
        key, value, listed, options = missing.groups()
        near = nearest(value, options.split())
        fix = f"Did you mean {near}?" if near else ""
        return Problem(key, f"there is no such file. {listed}{options}", fix, value)
    return Problem("command line", message)


def _unknown_key(key: str, value: Any) -> Problem:
    if key.startswith("logger.options."):
        fix = f"If the logger's class has such a keyword: +{key}={shown(value)}"
    else:
        # Hydra's own advice, to append with a plus, would not do: the schema is closed.
        keys = [*schema_keys(), *_GROUPS]
        same_leaf = [known for known in keys if known.split(".")[-1] == key.split(".")[-1]]
        near = same_leaf[0] if same_leaf else nearest(key, keys)
        fix = f"Did you mean {near}?" if near else "All keys: --cfg job."
    return Problem(key, "there is no such key", fix, value)


def _given_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a composed configuration, down to what the schema leaves free."""
    for name in cfg:
        child = cfg._get_node(name)
        if isinstance(child, DictConfig) and is_dataclass(OmegaConf.get_type(child)):
            yield from _given_keys(child, f"{prefix}{name!s}.")
        else:
            yield f"{prefix}{name!s}"
