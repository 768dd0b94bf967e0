"""What others vote on: prompts with two answers, sides at random, and the votes that come back.

    {"id": "7", "digest": "3f1c…", "prompt": "…", "answer_a": "…", "answer_b": "…", …}   asked
    {"id": "7", "digest": "3f1c…", "winner": "a"}                                     one vote
    {"id": "7", "digest": "3f1c…", "score_a": 0.2, "score_b": 0.7}                    another

A vote file is JSON lines, a JSON list, or a JSON object whose `votes` are that list. The digest is
of the prompt and both answers as they were shown, so that votes on others are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from minimind_dpo.disk import parse_lines
from minimind_dpo.evaluation.answers import Answer, Prompt, alike
from minimind_dpo.evaluation.judges.judge import JudgeError, read_file
from minimind_dpo.options.limits import is_number
from minimind_dpo.options.problem import ConfigError, Problem

KEY: Final = "judge.votes"
_WINNERS: Final = {"a": 1.0, "b": -1.0, "tie": 0.0}
_MOST_PROBLEMS: Final = 5


@dataclass(frozen=True, slots=True)
class Ballot:
    """One prompt with two answers that differ.

    Attributes:
        id: Number of the prompt, from 1.
        prompt: The prompt.
        a: The answer that is shown first, or on the left.
        b: The other.
        swapped: Whether `a` is the second of the two that are compared.
    """

    id: str
    prompt: Prompt
    a: Answer
    b: Answer
    swapped: bool

    @property
    def digest(self) -> str:
        """Of all that is shown: 16 hexadecimal digits."""
        return _digest(self.prompt.conversation, self.a.text, self.b.text)

    def to_json(self) -> dict[str, Any]:
        """What is shown; `cut` where the longest answer allowed cut one."""
        return {
            "id": self.id,
            "digest": self.digest,
            "prompt": self.prompt.conversation,
            "answer_a": self.a.text,
            "answer_b": self.b.text,
            "cut_a": not self.a.ended,
            "cut_b": not self.b.ended,
        }


def make_ballots(
    prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer], seed: int
) -> list[Ballot]:
    """Ballots in an order and with sides by chance: the same for the same answers and seed.

    So whoever stops half-way has voted on a random half. Answers alike are no ballot.
    """
    ballots = []
    for place in np.flatnonzero(~alike(first, second)).tolist():
        prompt, one, other = prompts[place], first[place], second[place]
        coin = _digest(str(seed), prompt.conversation, one.text, other.text)
        swapped = int(coin, 16) % 2 == 1
        a, b = (other, one) if swapped else (one, other)
        ballots.append((coin, Ballot(str(place + 1), prompt, a, b, swapped)))
    return [ballot for _, ballot in sorted(ballots, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote.

    Attributes:
        id: Of the ballot.
        digest: Of what was shown.
        preference: 1 for a, -1 for b, 0 for a tie.
    """

    id: str
    digest: str
    preference: float


def read_votes(path: str) -> list[Vote]:
    """The votes of a file.

    Raises:
        ConfigError: With the first problems of the file, each with its place.
    """
    rows = read_file(path, KEY, _rows)
    votes, problems, seen = [], [], dict[str, str]()
    for place, row in rows:
        vote, why = _vote(row)
        if vote is not None and vote.id in seen:
            why = f"votes on id {vote.id} once more, after {seen[vote.id]}"
        if vote is None or why:
            problems.append(Problem(f"{path}, {place}", why))
        else:
            seen[vote.id] = place
            votes.append(vote)
    if not rows:
        problems.append(Problem(KEY, "holds no vote", value=path))
    if len(problems) > _MOST_PROBLEMS:
        more = len(problems) - _MOST_PROBLEMS
        problems[_MOST_PROBLEMS:] = [Problem(path, f"has {more} more problems like these")]
    if problems:
        raise ConfigError(problems)
    return votes


def _rows(text: str) -> list[tuple[str, Any]]:
    """Rows with their places."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        return [(f"line {number}", row) for number, row in parse_lines(text)]
    if isinstance(content, dict) and "votes" in content:
        content = content["votes"]
    content = content if isinstance(content, list) else [content]
    return [(f"vote {number}", row) for number, row in enumerate(content, 1)]


def _vote(row: Any) -> tuple[Vote | None, str]:
    """The vote of a row; where it is none, why."""
    if not isinstance(row, dict) or not all(isinstance(row.get(k), str) for k in ("id", "digest")):
        return None, "needs an id and a digest, as they were exported"
    scores = row.get("score_a"), row.get("score_b")
    if row.get("winner") in _WINNERS:
        preference = _WINNERS[row["winner"]]
    elif all(map(is_number, scores)):
        preference = float(np.sign(scores[0] - scores[1]))  # type: ignore[operator]
    else:
        return None, 'needs "winner": "a", "b" or "tie", or numbers score_a and score_b'
    return Vote(row["id"], row["digest"], preference), ""


def count_votes(ballots: Sequence[Ballot], votes: Sequence[Vote], prompts: int) -> np.ndarray:
    """Preferences for the first of two answers: float64 (prompts,).

    Returns:
        0 where both answers are alike, NaN where nobody voted.

    Raises:
        JudgeError: Votes are of other prompts or answers.
    """
    asked = {ballot.id: ballot for ballot in ballots}
    strangers = [v.id for v in votes if v.id not in asked or asked[v.id].digest != v.digest]
    if strangers:
        raise JudgeError(
            f"{len(strangers)} of {len(votes)} votes are of other answers (id {strangers[0]} for "
            "one): these weights, evaluate.seed, evaluate.prompts, evaluate.max_new_tokens or "
            "evaluate.temperature are not those that the answers were written with"
        )
    preferences = np.zeros(prompts)
    for ballot in ballots:
        preferences[int(ballot.id) - 1] = np.nan
    for vote in votes:
        sign = -1.0 if asked[vote.id].swapped else 1.0
        preferences[int(vote.id) - 1] = sign * vote.preference + 0.0  # no -0
    return preferences


def _digest(*texts: str) -> str:
    content = json.dumps(texts, ensure_ascii=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]
