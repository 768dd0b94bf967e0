"""What the value of a key may be, declared beside its type and checked in one walk.

    beta: Annotated[float, Range(0, open_low=True)] = 0.1

Types are OmegaConf's business, which knows no unions and no `Literal`: a key that takes a number or
a word is `Any` with a `Form`. Where its type has None, a key may be None
whatever its limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType
from typing import Any, Final, Protocol, get_args, get_type_hints, runtime_checkable

from minimind_dpo.options.problem import Problem, did_you_mean


@runtime_checkable
class Limit(Protocol):
    """What a value has to fit."""

    def __contains__(self, value: Any) -> bool: ...

    def problem(self, key: str, value: Any) -> Problem:
        """What to say of a value that does not fit."""
        ...


@dataclass(frozen=True, slots=True, init=False)
class Choices:
    """One of a few words.

    Attributes:
        words: Them.
        refused: Words that people try and that are not among them: how they begin, why they are
            refused, and what to do instead.
    """

    words: tuple[str, ...]
    refused: Mapping[str, tuple[str, str]]

    def __init__(self, *words: str, refused: Mapping[str, tuple[str, str]] | None = None) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "refused", refused or {})

    def __contains__(self, value: Any) -> bool:
        return value in self.words

    def problem(self, key: str, value: Any) -> Problem:
        """Why this one is refused, or every choice and the nearest."""
        for start, (why, fix) in self.refused.items():
            if str(value).startswith(start):
                return Problem(key, f"is refused: {why}", fix, value)
        fix = did_you_mean(str(value), self.words)
        return Problem(key, f"must be one of {', '.join(self.words)}", fix, value)


@dataclass(frozen=True, slots=True)
class Range:
    """A finite number from `low` to `high`, the ends included unless they are open.

    Attributes:
        low: The least, or what the number is above.
        high: The most, or what the number is below.
        open_low: Whether `low` itself is out.
        open_high: Whether `high` itself is out.
        advice: Why, or what is usual; completes the message.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    advice: str = ""

    def __contains__(self, value: Any) -> bool:
        if not is_number(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low, high = ("above", "at least"), ("below", "at most")
        sides = ((low, self.open_low, self.low), (high, self.open_high, self.high))
        words = [
            f"{pair[not is_open]} {end:,.0f}"
            if end == round(end)
            else f"{pair[not is_open]} {end:g}"
            for pair, is_open, end in sides
            if math.isfinite(end)
        ]
        return " and ".join(words) or "a finite number"

    def problem(self, key: str, value: Any) -> Problem:
        """Both ends, as words."""
        return Problem(key, f"must be {self}{self.advice}", value=value)


@dataclass(frozen=True, slots=True)
class Form:
    """What only a function can tell.

    Attributes:
        fits: Whether a value does; never raises.
        text: What it must be: `optimizer steps (1 or more), or val`.
        fix: What to do, as a sentence.
    """

    fits: Callable[[Any], bool]
    text: str
    fix: str = ""

    def __contains__(self, value: Any) -> bool:
        return self.fits(value)

    def problem(self, key: str, value: Any) -> Problem:
        """What it must be."""
        return Problem(key, f"must be {self.text}", self.fix, value)


MISSING: Final = "???"
"""OmegaConf's sign for a value that has to be given."""
COUNT: Final = Range(1)
NOT_NEGATIVE: Final = Range(0)
POSITIVE: Final = Range(0, open_low=True)
SHARE: Final = Range(0, 1, open_high=True)


def _is_auto_or_switch(value: Any) -> bool:
    return value == "auto" or isinstance(value, bool)


AUTO_OR_SWITCH: Final = Form(_is_auto_or_switch, "auto, true or false")
SWITCH: Final = Form(lambda value: isinstance(value, bool), "true or false")


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: Dotted, `loss.beta`.
        kind: Its type.
        limits: What its value has to fit.
    """

    name: str
    kind: Any
    limits: tuple[Limit, ...]

    @property
    def optional(self) -> bool:
        """Whether its type has None."""
        return self.kind is Any or NoneType in get_args(self.kind)


def keys_of(group: type, prefix: str = "") -> Iterator[Key]:
    """Every key of a dataclass of options and of those inside it, leaves only."""
    hints = get_type_hints(group, include_extras=True)
    for item in fields(group):
        kind, name = hints[item.name], prefix + item.name
        if isinstance(kind, type) and is_dataclass(kind):
            yield from keys_of(kind, f"{name}.")
        else:
            args = get_args(kind) if hasattr(kind, "__metadata__") else (kind,)
            yield Key(name, args[0], tuple(arg for arg in args[1:] if isinstance(arg, Limit)))


def value_at(options: Any, name: str) -> Any:
    """The value of a dotted key."""
    for part in name.split("."):
        options = getattr(options, part)
    return options


def limit_problems(options: Any, prefix: str = "") -> Iterator[Problem]:
    """Values of a dataclass of options that do not fit their limits.

    Args:
        options: The dataclass, those inside it included.
        prefix: What its keys begin with in the configuration, `loss.`.
    """
    for key in keys_of(type(options)):
        value = value_at(options, key.name)
        if value is None and key.optional:
            continue
        for limit in key.limits:
            if value not in limit:
                yield limit.problem(prefix + key.name, value)


def is_number(value: Any) -> bool:
    """A finite number that is not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_word(value: Any) -> bool:
    """A string that is not empty."""
    return isinstance(value, str) and bool(value)


def as_list(value: Any) -> list[Any]:
    """One thing or several, as a list; nothing (None or an empty string) is an empty list."""
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
