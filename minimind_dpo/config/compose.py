"""Configuration: composed by Hydra from `conf/`, typed by `schema`, handed on as dataclasses.

An unknown key or a wrong type fails while the configuration is composed and is named; values are
checked afterwards by `minimind_dpo.config.check`. Nothing here imports torch, so that a typo and
`--help` answer at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Final

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minimind_dpo.config.explain import compose_problem, unknown_key
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import PACKAGE_DIR, SETTINGS, SHIPPED, Source
from minimind_dpo.data.options import DataOptions
from minimind_dpo.models.options import ModelOptions
from minimind_dpo.options.problem import ConfigError, Problem

_NOT_COMPOSED: Final = (
    HydraException,
    OmegaConfBaseException,
    ValueError,
    TypeError,
    AttributeError,
)
"""What Hydra raises on a configuration that cannot be composed, on odd values as well."""


_OTHER_GROUPS: Final = {"hydra/launcher": "joblib", "hydra/sweeper": "optuna", "sweep": "beta"}
"""Those of which `config.yaml` chooses none, and a file of each."""


@functools.cache
def register_schemas() -> None:
    """Tell Hydra the types of every key, and OmegaConf the `package` resolver.

    `${package:demo/assets}` is the absolute path of a file that ships inside this package.
    """
    ConfigStore.instance().store(name="schema", node=_schema())
    OmegaConf.register_new_resolver(
        "package", lambda path: str(PACKAGE_DIR / str(path)), replace=True
    )


def _schema() -> DictConfig:
    node = OmegaConf.structured(Config)
    node.model = ModelOptions
    node.data = DataOptions
    # `model.config.num_attention_heads=4` has to work without a `+`: its keys are the model's own,
    # and those of the template's options are the template's.
    OmegaConf.set_struct(node.model.config, False)
    OmegaConf.set_struct(node.data.template_options, False)
    return node


def primary_config(source: Source, overrides: Sequence[str]) -> str:
    """The name of the configuration that Hydra starts from, known to Hydra from now on."""
    register_schemas()
    if source.file is None:
        return "config"
    content = source.settings(overrides)
    ConfigStore.instance().store(name=SETTINGS, node=OmegaConf.create(content))
    return SETTINGS


def compose_hydra(
    overrides: Sequence[str], source: Source = SHIPPED, with_hydra: bool = True
) -> DictConfig:
    """Compose with command-line overrides, outside `hydra.main`.

    Args:
        overrides: As on the command line, without flags.
        source: Files of the user's own.
        with_hydra: Leave Hydra's own settings in, as the node `hydra`.

    Raises:
        ConfigError: An unknown key or group, a value of the wrong type, an override that cannot be
            parsed (Hydra stops at the first of these).
    """
    name = primary_config(source, overrides)
    try:
        _check_groups(overrides, source)
        with initialize_config_dir(str(source.conf), version_base="1.3"):
            return hydra_compose(name, list(overrides), return_hydra_config=with_hydra)
    except ConfigError:
        raise
    except _NOT_COMPOSED as error:
        raise ConfigError([compose_problem(error, overrides, source)]) from error


def _check_groups(overrides: Sequence[str], source: Source) -> None:
    """Refuse what Hydra takes for the file of a group and then fails on, or takes one of alone."""
    groups = {**source.groups(), **_OTHER_GROUPS}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if key not in groups or override.is_delete() or override.is_sweep_override():
            continue
        names = value if key == "experiment" and isinstance(value, list) else [value]
        if not all(isinstance(name, str) and "${" not in name for name in names):
            why = "takes the name of one file of this group"
            raise ConfigError([Problem(key, why, f"For example: {key}={groups[key]}", value)])


def compose(overrides: Sequence[str] = (), source: Source = SHIPPED) -> Config:
    """Compose `conf/` with command-line overrides, outside `hydra.main`.

    Args:
        overrides: As on the command line, `["experiment=demo", "loss.beta=0.2"]`, without flags.
        source: Files of the user's own.

    Raises:
        ConfigError: As `compose_hydra`; or an interpolation has no target.
    """
    return to_config(compose_hydra(overrides, source, with_hydra=False))


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
        keys = set(_given_keys(cfg))
        deleted = [Problem(key, "was deleted") for key in schema_keys() if key not in keys]
        if deleted:
            raise ConfigError(deleted)
        OmegaConf.resolve(cfg)  # an interpolation's value has to be of the key's type as well
        config = OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        key = str(getattr(error, "full_key", None) or _unresolved_key(cfg) or "configuration")
        raise ConfigError([Problem(key, f"cannot be resolved ({first})")]) from error
    assert isinstance(config, Config)
    unknown = sorted(keys - set(schema_keys()))
    if unknown:
        # `+loss.bta=1` gets past the schema: OmegaConf lets a plus add attributes to dataclasses.
        raise ConfigError([unknown_key(key, OmegaConf.select(cfg, key)) for key in unknown])
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, to be kept beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _unresolved_key(cfg: DictConfig) -> str | None:
    """The first key whose value is still an interpolation."""
    for key in schema_keys():
        parent, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, parent, throw_on_resolution_failure=False) if parent else cfg
        if isinstance(node, DictConfig) and OmegaConf.is_interpolation(node, name):
            return key
    return None


def _given_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a composed configuration, down to what the schema leaves free."""
    for name in cfg:
        child = cfg._get_node(name)
        if isinstance(child, DictConfig) and is_dataclass(OmegaConf.get_type(child)):
            yield from _given_keys(child, f"{prefix}{name!s}.")
        else:
            yield f"{prefix}{name!s}"
