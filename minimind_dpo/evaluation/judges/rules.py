"""The judge `rules`: a small file says what gives an answer points; more points are better.

- rule: length        # from min to max, of unit characters (default) or tokens
  max: 200
- rule: ends          # the model ended its turn by itself
  points: 2           # 1 where it is left out; below 0, the rule is of what is not wanted
- rule: repetition    # at most this share of 4-grams (of tokens) that came before
  max: 0.1
- rule: language      # zh, en, other, or same as the prompt
  is: same
- rule: contains      # this text, or one of several
  text: [您好, 你好]
- rule: matches       # a regular expression is found
  pattern: '\\d+'
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml

from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.form import language_of, repeated_share
from minimind_dpo.evaluation.judges.judge import Trust, prefer, read_file
from minimind_dpo.evaluation.text import Text
from minimind_dpo.options.limits import (
    NOT_NEGATIVE,
    Choices,
    Form,
    Limit,
    Range,
    is_number,
    is_word,
)
from minimind_dpo.options.problem import ConfigError, Problem, did_you_mean

Fits = Callable[[Prompt, Answer], bool]
"""Whether an answer fits a rule."""

KEY: Final = "judge.rules"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        fits: Whether an answer does.
        points: What an answer gets that does.
    """

    fits: Fits
    points: float


@dataclass(frozen=True, slots=True)
class Kind:
    """What rules of one name are.

    Attributes:
        make: From a rule's keys to its test.
        keys: What each may be.
        needs: Keys of which at least one is given; empty where none has to be.
    """

    make: Callable[[Mapping[str, Any]], Fits]
    keys: Mapping[str, Limit]
    needs: tuple[str, ...] = ()


def _length(keys: Mapping[str, Any]) -> Fits:
    low, high = keys.get("min", 0), keys.get("max", math.inf)
    tokens = keys.get("unit") == "tokens"
    return lambda prompt, answer: low <= len(answer.ids if tokens else answer.text) <= high


def _repetition(keys: Mapping[str, Any]) -> Fits:
    most = keys["max"]
    return lambda prompt, answer: repeated_share(answer.content_ids.tolist()) <= most


def _language(keys: Mapping[str, Any]) -> Fits:
    name = keys["is"]
    return lambda prompt, answer: (
        language_of(answer.text) == (language_of(prompt.text) if name == "same" else name)
    )


def _contains(keys: Mapping[str, Any]) -> Fits:
    texts = [keys["text"]] if isinstance(keys["text"], str) else keys["text"]
    return lambda prompt, answer: any(text in answer.text for text in texts)


def _matches(keys: Mapping[str, Any]) -> Fits:
    pattern = re.compile(keys["pattern"])
    return lambda prompt, answer: pattern.search(answer.text) is not None


def _is_text_or_texts(value: Any) -> bool:
    return is_word(value) or (isinstance(value, list) and bool(value) and all(map(is_word, value)))


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        return False
    return True


KINDS: Final = {
    "length": Kind(
        _length,
        {"min": NOT_NEGATIVE, "max": NOT_NEGATIVE, "unit": Choices("characters", "tokens")},
        ("min", "max"),
    ),
    "ends": Kind(lambda keys: lambda prompt, answer: answer.ended, {}),
    "repetition": Kind(_repetition, {"max": Range(0, 1)}, ("max",)),
    "language": Kind(_language, {"is": Choices("zh", "en", "other", "same")}, ("is",)),
    "contains": Kind(
        _contains, {"text": Form(_is_text_or_texts, "a text, or a list of texts")}, ("text",)
    ),
    "matches": Kind(
        _matches,
        {"pattern": Form(_is_pattern, "a regular expression of Python's re")},
        ("pattern",),
    ),
}
"""Every rule by its name."""

_POINTS: Final = Form(is_number, "a number")


class RulesJudge:
    """Prefers the answer with more points; the same points are a tie.

    Args:
        path: The file of rules.

    Raises:
        ConfigError: With every problem of the file.
    """

    name = "rules"
    tokens_ahead = 0

    def __init__(self, path: str) -> None:
        self._rules = read_rules(path)
        n, file = len(self._rules), Path(path).name
        count = "one rule" if n == 1 else f"{n} rules"
        self.trust = Trust(
            Text(f"the form asked for by {count} of {file}", f"{file} 中 {n} 条规则要求的形式")
        )

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1 where the first has more points, -1 where the second has, 0 else."""
        return prefer(self._points(prompts, first), self._points(prompts, second))

    def _points(self, prompts: Sequence[Prompt], answers: Sequence[Answer]) -> np.ndarray:
        pairs = zip(prompts, answers, strict=True)
        points = [sum(rule.points for rule in self._rules if rule.fits(p, a)) for p, a in pairs]
        return np.array(points, np.float64)


def read_rules(path: str) -> list[Rule]:
    """The rules of a file.

    Raises:
        ConfigError: With every problem of the file.
    """
    content = read_file(path, KEY, yaml.safe_load)
    if not isinstance(content, list) or not content:
        fix = "Begin each with '- rule: NAME'."
        raise ConfigError([Problem(KEY, "must be a list of one rule or more", fix, path)])
    problems = [
        Problem(f"{path}, rule {number}, {problem.key}", problem.why, problem.fix, problem.value)
        for number, keys in enumerate(content, 1)
        for problem in _rule_problems(keys)
    ]
    if problems:
        raise ConfigError(problems)
    return [Rule(KINDS[keys["rule"]].make(keys), float(keys.get("points", 1))) for keys in content]


def _rule_problems(keys: Any) -> Iterator[Problem]:
    if not isinstance(keys, dict) or "rule" not in keys:
        yield Problem("rule", "is missing", f"There are {', '.join(KINDS)}.")
        return
    names = Choices(*KINDS)
    if keys["rule"] not in names.words:
        yield names.problem("rule", keys["rule"])
        return
    kind = KINDS[keys["rule"]]
    limits: dict[str, Limit] = {"rule": names, "points": _POINTS, **kind.keys}
    for key, value in keys.items():
        if key not in limits:
            fix = did_you_mean(str(key), limits) or f"It has {', '.join(limits)}."
            yield Problem(str(key), f"is no key of the rule {keys['rule']}", fix)
        elif value not in limits[key]:
            yield limits[key].problem(key, value)
    if kind.needs and not any(key in keys for key in kind.needs):
        yield Problem(" or ".join(kind.needs), "is missing")
    low, high = keys.get("min"), keys.get("max")
    if low is not None and high is not None and is_number(low) and is_number(high) and low > high:
        yield Problem("min", f"is above max={high}", value=low)
