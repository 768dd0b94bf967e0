"""Configurations for many tests: what `compose` gives, from groups that are composed once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf

from minimind_dpo.config.command_line import parsed
from minimind_dpo.config.compose import compose, compose_hydra, to_config
from minimind_dpo.config.schema import Config, schema_keys

_KEYS = set(schema_keys())


@functools.cache
def _composed(groups: tuple[str, ...]) -> DictConfig:
    return compose_hydra(groups, with_hydra=False)


def composed(overrides: Sequence[str] = ()) -> Config:
    """As `compose`, about four times as fast where the groups were asked for before."""
    listed = parsed(overrides)
    if any(override.type is not OverrideType.CHANGE for override in listed):
        return compose(overrides)
    values = [override for override in listed if override.key_or_group in _KEYS]
    groups = tuple(o.input_line for o in listed if o.key_or_group not in _KEYS and o.input_line)
    cfg = copy.deepcopy(_composed(groups))
    for override in values:
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return to_config(cfg)
