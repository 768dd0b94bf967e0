"""What can be wrong with a configuration, and how it is told: key, value, reason, remedy."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration.

    Attributes:
        key: `loss.beta`.
        why: What is wrong with it, without a full stop.
        fix: What to do, as a sentence; empty where `why` says it.
        value: What was given; an ellipsis where there is no value to show.
    """

    key: str
    why: str
    fix: str = ""
    value: Any = ...

    def __str__(self) -> str:
        value = "" if self.value is ... else f"={shown(self.value)}"
        # What comes from below this layer names its key itself.
        place = "" if self.why.startswith(self.key) else f"{self.key}{value}: "
        return f"{place}{self.why}." + (f" {self.fix}" if self.fix else "")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, at once.

    Attributes:
        problems: Every one of them.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{count} in the configuration:\n{lines}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)  # ranks send it to each other


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `word`, if any does."""
    matches = difflib.get_close_matches(str(word), list(choices), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A question that offers the nearest choice; empty where none is near."""
    near = nearest(word, choices)
    return f"Did you mean {near}?" if near else ""


def missing_file(key: str, value: Any, path: str | Path) -> Problem:
    """There is no such file; the nearest name in its folder is offered."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return Problem(key, f"does not exist, nor does its folder {folder}", value=value)
    near = nearest(os.path.basename(path), os.listdir(folder))
    fix = f"Did you mean {os.path.normpath(os.path.join(folder, near))}?" if near else ""
    return Problem(key, "does not exist", fix, value)


def package_problems(key: str, value: Any, package: str, extra: str) -> Iterator[Problem]:
    """An optional package that `value` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        fix = f"Install it: pip install 'minimind-dpo[{extra}]'"
        yield Problem(key, f"needs the package {package}", fix, value)


def shown(value: Any) -> str:
    """A value as one would type it on the command line, cut at 200 characters."""
    if isinstance(value, list | tuple):
        text = "[" + ",".join(shown(item) for item in value) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    elif isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127) if chr(code) not in "\t\n"}


def printable(text: str) -> str:
    """Text that any terminal and file can take: no control characters, no half surrogate pairs.

    Bytes of a name that are not UTF-8 become `\\xb9`.
    """
    text = text.translate(_CONTROLS)
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair that stands for no byte
        return text.encode("utf-8", "backslashreplace").decode()
