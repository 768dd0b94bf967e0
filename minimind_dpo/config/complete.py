"""Values of a key for the TAB of a shell; Hydra completes keys and files of groups by itself."""

from __future__ import annotations

import os

from minimind_dpo.config.schema import Config
from minimind_dpo.options.limits import Choices, keys_of


def completed_values() -> list[str]:
    """The line's last word, `key=start of a value`, with each choice of that key.

    Returns:
        Nothing where it is no such word, or its key has no choices.
    """
    word = os.environ.get("COMP_LINE", "").rpartition(" ")[2]
    name, equals, start = word.partition("=")
    return [f"{name}={choice}" for choice in _choices(name) if equals and choice.startswith(start)]


def _choices(name: str) -> list[str]:
    if name == "loss.type":
        from minimind_dpo.objective.losses.registry import LOSSES  # imports torch

        return list(LOSSES)
    limits = [limit for key in keys_of(Config) if key.name == name for limit in key.limits]
    return [word for limit in limits if isinstance(limit, Choices) for word in limit.words]
