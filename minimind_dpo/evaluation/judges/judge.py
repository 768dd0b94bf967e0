"""What a judge is: it compares two answers to a prompt, and says what it can be trusted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import yaml

from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.evaluation.text import chinese
from minimind_dpo.options.problem import ConfigError, Problem

if TYPE_CHECKING:
    from minimind_dpo.evaluation.answers import Answer, Prompt

_T = TypeVar("_T")


class JudgeError(Exception):
    """A judge failed: what it is, and why."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a judge can be trusted for.

    Attributes:
        words: What it goes by, as a noun phrase: "the preference that the training pairs show". It
            and the other sentences may be a `Text`, which knows its Chinese.
        accuracy: Share of held-out pairs whose chosen answer it prefers, ties counted half; None
            where that is not the measure, as for a program that says what is wanted.
        unable: Why it cannot judge at all; empty where it can.
        has_to_be_right: Whether a judge that may be right by chance alone cannot judge; so for one
            that was fitted on such pairs.
        advice: What to do so that it can; empty where there is nothing.
    """

    words: str
    accuracy: Estimate | None = None
    unable: str = ""
    advice: str = ""
    has_to_be_right: bool = True

    @property
    def can_judge(self) -> bool:
        """Whether it tells chosen from rejected better than a coin, at 95%, where it has to."""
        if self.unable:
            return False
        return self.accuracy is None or not self.has_to_be_right or self.accuracy.low > 0.5

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "words": self.words,
            "accuracy": self.accuracy and asdict(self.accuracy),
            "unable": self.unable,
            "advice": self.advice,
            "advice_zh": chinese(self.advice),
            "can_judge": self.can_judge,
        }


class Judge(Protocol):
    """Compares two answers to each of some prompts."""

    @property
    def name(self) -> str:
        """As `judge.name` has it."""
        ...

    @property
    def trust(self) -> Trust:
        """What it can be trusted for; may take the work that finds that out."""
        ...

    @property
    def tokens_ahead(self) -> int:
        """Tokens that a model on this machine has to run before it can judge; 0 for none."""
        ...

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """Which answer to each prompt is better.

        Returns:
            float64 (prompts,) in [-1, 1]: 1 the first, -1 the second, 0 a tie, and between them a
            share; NaN where it could not judge, which is counted and told.
        """
        ...


def prefer(ours: np.ndarray, theirs: np.ndarray, alike: np.ndarray | bool = False) -> np.ndarray:
    """Preferences of scores: float64 (n,), NaN where a score is NaN.

    Args:
        ours: float64 (n,), scores of the first answers.
        theirs: float64 (n,), of the second ones.
        alike: bool (n,), where both are one text: a tie, whatever noise is in their scores.
    """
    return np.where(alike, 0.0, np.sign(ours - theirs))


def read_file(path: str, key: str, parse: Callable[[str], _T]) -> _T:
    """What a file that a judge needs holds.

    Args:
        path: The file, UTF-8.
        key: Where it was named.
        parse: Reads its text; raises ValueError or YAMLError.

    Raises:
        ConfigError: It cannot be read.
    """
    place = Path(path).expanduser()
    try:
        if place.exists() and not place.is_file():
            raise ValueError("it is no file")  # a device may never end
        return parse(place.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        why = f"cannot be read: {' '.join(str(error).split())}"
        raise ConfigError([Problem(key, why, value=path)]) from error
