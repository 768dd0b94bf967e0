"""What can be wrong with preference data, and how it is told.

A problem's key is its place (`dpo.jsonl:17`). Problems are collected until all are known and raised
once; those that say the same of many lines are one, with a count. Where the user asked to skip
them, each is written to a file. None is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from minimind_dpo.options.problem import Problem, printable

SHOWN = 20
"""Different problems spelt out in a message; the others are counted."""

_PLACES = 4
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


@dataclass(slots=True)
class _Alike:
    """Problems whose messages differ in numbers alone."""

    first: Problem
    sources: list[str] = field(default_factory=list)
    count: int = 0

    def __str__(self) -> str:
        if self.count == 1:
            return f"  {self.first}"
        rest = ", ".join(self.sources[1:])
        more = ", ..." if self.count > len(self.sources) else ""
        noun = "place" if self.count == 2 else "places"
        return f"  {self.first}\n    and the same in {self.count - 1:,} more {noun}: {rest}{more}"


@dataclass(slots=True)
class ProblemLog:
    """Collects problems; call it with each one.

    Attributes:
        total: All of them.
        kinds: Those that a message spells out, by what they say.
    """

    total: int = 0
    kinds: dict[str, _Alike] = field(default_factory=dict)

    def __call__(self, problem: Problem) -> None:
        """Add one."""
        self.total += 1
        key = _NUMBER.sub("#", problem.why)
        if key not in self.kinds:
            if len(self.kinds) == SHOWN:
                return
            self.kinds[key] = _Alike(problem)
        alike = self.kinds[key]
        alike.count += 1
        if len(alike.sources) < _PLACES:
            alike.sources.append(problem.key)

    def raise_if_any(self) -> None:
        """Raise `DataError` if there is a problem."""
        if self.total:
            hint = (
                "Correct these, or set data.on_error=skip to leave them out "
                "(they are counted and written to a file)."
            )
            raise DataError(self, hint)


class DataError(ValueError):
    """Preference data that cannot be used.

    Attributes:
        problems: All of them; of a log, the first of those that are alike.
        total: How many there are.
    """

    def __init__(self, problems: Sequence[Problem] | ProblemLog, hint: str = "") -> None:
        if isinstance(problems, ProblemLog):
            log = problems
            self.problems = tuple(alike.first for alike in log.kinds.values())
        else:
            log = ProblemLog()
            self.problems = tuple(problems)
            for problem in problems:
                log(problem)
        self.total = log.total
        noun = "problem" if self.total == 1 else "problems"
        lines = [f"{self.total:,} {noun} in the preference data:", *map(str, log.kinds.values())]
        others = self.total - sum(alike.count for alike in log.kinds.values())
        if others:
            lines.append(f"  ... and {others:,} more")
        super().__init__(printable("\n".join([*lines, hint] if hint else lines)))
