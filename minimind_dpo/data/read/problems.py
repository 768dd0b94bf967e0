"""What can be wrong with preference data, and how it is told.

A problem belongs to a place (`dpo.jsonl:17`) and is either collected until all are known and
raised once, or, where the user asked to skip, counted and kept for a file. Nothing is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SHOWN = 20
"""Problems spelt out in a message; the others are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the data.

    Attributes:
        source: Where, `dpo.jsonl:17`, or a file's name where no line is to blame.
        message: What, and what to do about it where that is not plain.
    """

    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


class DataError(ValueError):
    """Preference data that cannot be used.

    Attributes:
        problems: The problems that were kept, at least the first `SHOWN`.
        total: How many there are.
    """

    def __init__(
        self, problems: Sequence[Problem], total: int | None = None, hint: str = ""
    ) -> None:
        self.problems = tuple(problems)
        self.total = len(self.problems) if total is None else total
        shown = self.problems[:SHOWN]
        noun = "problem" if self.total == 1 else "problems"
        lines = [f"{self.total:,} {noun} in the preference data:"]
        lines += [f"  {problem}" for problem in shown]
        if self.total > len(shown):
            lines.append(f"  ... and {self.total - len(shown):,} more")
        super().__init__("\n".join([*lines, hint] if hint else lines))


@dataclass(slots=True)
class ProblemLog:
    """Collects problems; call it with each one.

    Attributes:
        keep_all: Keep every problem (they go to a file), not only those that a message shows.
        problems: Those kept, in the order they were met.
        total: All of them.
    """

    keep_all: bool = False
    problems: list[Problem] = field(default_factory=list)
    total: int = 0

    def __call__(self, problem: Problem) -> None:
        """Add one."""
        self.total += 1
        if self.keep_all or len(self.problems) < SHOWN:
            self.problems.append(problem)

    def raise_if_any(self) -> None:
        """Raise `DataError` if there is a problem."""
        if self.total:
            hint = (
                "Correct these, or set data.on_error=skip to leave them out "
                "(they are counted and written to a file)."
            )
            raise DataError(self.problems, self.total, hint)
