"""The judge `python`: a function of the user's own, named by its import path.

    score(prompt, answer) -> float              the answer with the higher score is better
    compare(prompt, answer_a, answer_b) -> int  1 the first is better, -1 the second, 0 neither

The number of parameters without a default tells which it is. All are texts; a prompt of several
turns has each on its own, `role: content`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from minimind_dpo.evaluation.answers import Answer, Prompt, alike
from minimind_dpo.evaluation.judges.judge import JudgeError, Trust, prefer
from minimind_dpo.evaluation.text import Text
from minimind_dpo.options.problem import ConfigError, Problem

KEY: Final = "judge.python"
_EMPTY: Final = inspect.Parameter.empty
_BY_PLACE: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PythonJudge:
    """Asks a function of the user's own.

    Args:
        path: `package.module:function`.

    Raises:
        ConfigError: There is none, or it takes neither two parameters nor three.
    """

    name = "python"
    tokens_ahead = 0

    def __init__(self, path: str) -> None:
        self.path = path
        self.trust = Trust(Text(f"what {path} says", f"{path} 给出的判断"))
        self._function = _import(path)
        self._compares = _parameters(path, self._function) == 3

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """float64 (prompts,); 0 for answers alike, else NaN where the function gives it.

        Raises:
            JudgeError: The function fails, or gives what is no such number.
        """
        triples = list(zip(prompts, first, second, strict=True))
        if self._compares:
            given = [self._preference(p, a.text, b.text) for p, a, b in triples]
            return np.where(alike(first, second), 0.0, np.array(given, np.float64))
        scores = [(self._ask(p, a.text), self._ask(p, b.text)) for p, a, b in triples]
        ours, theirs = np.array(scores, np.float64).T
        return prefer(ours, theirs, alike(first, second))

    def _preference(self, prompt: Prompt, first: str, second: str) -> float:
        preference = self._ask(prompt, first, second)
        if not np.isnan(preference) and not -1.0 <= preference <= 1.0:
            what = f"gave {preference:g} for the prompt at {prompt.source}, not 1, 0 or -1"
            raise JudgeError(f"{KEY}={self.path} {what}")
        return preference

    def _ask(self, prompt: Prompt, *answers: str) -> float:
        try:
            return float(self._function(prompt.conversation, *answers))
        except Exception as error:
            place = _place(error)
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise JudgeError(
                f"{KEY}={self.path} failed on the prompt at {prompt.source}{place}: {why}"
            ) from error


def _place(error: Exception) -> str:
    """Where the user's code raised; empty where its result is no number."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if len(frames) > 1 else ""


def _import(path: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    if not name or not module_name:
        fix = "For a file mine.py here with a function score: judge.python=mine:score."
        raise ConfigError([Problem(KEY, "must be package.module:function", fix, path)])
    here = os.getcwd()
    if here not in sys.path:  # as `python -m` has it, and a console script has not
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        why = f"cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"
        fix = f"Modules are looked for in {here} and where Python looks (PYTHONPATH)."
        raise ConfigError([Problem(KEY, why, fix, path)]) from error
    function = getattr(module, name, None)
    if not callable(function):
        why = f"names nothing that can be called in {module.__file__}"
        raise ConfigError([Problem(KEY, why, value=path)])
    return function


def _parameters(path: str, function: Callable[..., Any]) -> int:
    """How many parameters it needs: 2 for a score, 3 for a comparison."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    needed = [p for p in parameters if p.default is _EMPTY and p.kind in _BY_PLACE]
    named = [p for p in parameters if p.default is _EMPTY and p.kind is p.KEYWORD_ONLY]
    if len(needed) not in (2, 3) or named:
        why = f"needs {len(needed) + len(named)} arguments"
        fix = "A score takes (prompt, answer), a comparison (prompt, answer_a, answer_b)."
        raise ConfigError([Problem(KEY, why, fix, path)])
    return len(needed)
