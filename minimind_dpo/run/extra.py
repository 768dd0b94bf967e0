"""Callbacks and loggers of the user's own, named by `_target_` as Hydra instantiates them."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from minimind_dpo.options.problem import ConfigError, Problem


def build_extra(key: str, entries: list[dict[str, Any]], kind: Any) -> list[Any]:
    """Make what a key lists.

    Args:
        key: `callbacks.extra`.
        entries: Its mappings, each with `_target_` and arguments.
        kind: Class that they have to be of.

    Raises:
        ConfigError: Naming every entry that is not importable, is given arguments that it does
            not take, or is something else.
    """
    made, wrong = [], []
    for place, entry in enumerate(entries):
        target = entry["_target_"]
        try:
            each = instantiate(entry, _convert_="all")
        except (InstantiationException, ImportError, ValueError) as error:
            cause = error.__cause__ or error
            why = f"cannot be made ({type(cause).__name__}: {' '.join(str(cause).split())})"
            wrong.append(Problem(f"{key}[{place}]", why, value=target))
            continue
        if isinstance(each, kind):
            made.append(each)
        else:
            why = f"makes a {type(each).__name__}, which is no {kind.__name__}"
            wrong.append(Problem(f"{key}[{place}]", why, value=target))
    if wrong:
        raise ConfigError(wrong)
    return made
