"""The judges `file` and `human`: answers go out, votes come back, and in between nobody waits.

`file` writes JSON lines for a program or a person of the user's choice, `human` one HTML page that
needs no network and no server. Both read the votes that come back in the same way.

The answers themselves are kept beside, whole and with their tokens: drawn anew on another machine
or from exported weights of half precision, some would be others, and their votes lost.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from minimind_dpo.disk import read_lines, write_lines, write_text
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.ballots import KEY as VOTES
from minimind_dpo.evaluation.judges.ballots import Ballot, count_votes, make_ballots, read_votes
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.evaluation.text import Text, chinese
from minimind_dpo.options.problem import ConfigError, Problem

KEPT: Final = "voted_on.jsonl"
"""File of the answers that are voted on; it says which model wrote which."""

Drawn: TypeAlias = tuple[list[Answer], list[Answer]]
"""Answers of the policy and of the reference to the same prompts."""


@dataclass(frozen=True, slots=True)
class Way:
    """How answers go out.

    Attributes:
        file: Name of what is written.
        write: Writes it.
        words: What its votes can be trusted for.
        todo: What to do with the file, whose path stands at the first {}, and the command after it.
        votes: What the votes are called in the command.
    """

    file: str
    write: Callable[[Path, Sequence[Ballot]], None]
    words: Text
    todo: Text
    votes: str


def write_ballots(path: Path, ballots: Sequence[Ballot]) -> None:
    """Write a JSON object a line."""
    write_lines(path, (ballot.to_json() for ballot in ballots))


def write_page(path: Path, ballots: Sequence[Ballot]) -> None:
    """Write one HTML page: no network, no server, English and Chinese."""
    # NOTE: a "<" inside would end the script that holds the data.
    data = json.dumps([b.to_json() for b in ballots], ensure_ascii=False).replace("<", "\\u003c")
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    write_text(path, page.replace("[/* ballots */]", data))


WAYS: Final = {
    "file": Way(
        "to_judge.jsonl",
        write_ballots,
        Text("what whoever wrote the votes prefers", "写下这些投票者的偏好"),
        Text(
            'Add "winner": "a", "b" or "tie" (or score_a and score_b) to the lines of {}. Then: {}',
            '在 {} 的每行加上 "winner": "a"、"b" 或 "tie"（或 score_a 和 score_b），然后运行：{}',
        ),
        "VOTES.jsonl",
    ),
    "human": Way(
        "vote.html",
        write_page,
        Text(
            "what people prefer who do not know which model wrote which answer",
            "不知道回答出自哪个模型的人的偏好",
        ),
        Text(
            "Open {} in a browser, vote with the keys 1 2 3, and save the votes. Then: {}",
            "用浏览器打开 {}，按 1 2 3 键投票并保存，然后运行：{}",
        ),
        "votes.json",
    ),
}
"""By judge."""


@dataclass(frozen=True, slots=True)
class BallotBox:
    """Where answers lie that are voted on.

    Attributes:
        folder: Their folder.
        policy: Digest of the policy that is compared; asked when it has answered.
        again: The command that reads votes, but for their file; empty for that of the run in the
            folder.
    """

    folder: Path
    policy: Callable[[], str]
    again: str = ""

    def keep(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> None:
        """Write the answers that are voted on, after whose they are."""

        def plain(answer: Answer) -> dict[str, Any]:
            return {"text": answer.text, "ids": answer.ids.tolist(), "ended": answer.ended}

        triples = zip(prompts, first, second, strict=True)
        rows = [
            {"prompt": p.ids.tolist(), "policy": plain(a), "reference": plain(b)}
            for p, a, b in triples
        ]
        write_lines(self.folder / KEPT, [{"of": self.policy()}, *rows])

    def kept(self, prompts: Sequence[Prompt]) -> Drawn | None:
        """The answers that were voted on; None where none are kept, or those to other prompts.

        Raises:
            ConfigError: They are of another policy.
        """
        path = self.folder / KEPT
        if not path.is_file():
            return None
        of, *rows = read_lines(path) or [{}]
        if of.get("of") != self.policy():
            why = f"are on answers of another policy: {path} is not of the one that is named"
            fix = "Name the policy that was voted on, or ask anew, without judge.votes."
            raise ConfigError([Problem(VOTES, why, fix)])
        if [row["prompt"] for row in rows] != [prompt.ids.tolist() for prompt in prompts]:
            return None

        def answers(side: str) -> list[Answer]:
            each = (row[side] for row in rows)
            return [Answer(a["text"], np.array(a["ids"], np.int32), a["ended"]) for a in each]

        return answers("policy"), answers("reference")


class VotesJudge:
    """Writes what is to be judged, or reads what was.

    Args:
        name: `file` or `human`.
        box: Where to write.
        votes: File of votes; None to write.
        seed: Of sides and order.
    """

    tokens_ahead = 0

    def __init__(self, name: str, box: BallotBox, votes: str | None, seed: int) -> None:
        self.name = name
        self.trust = Trust(WAYS[name].words)
        self._box = box
        self._votes = votes
        self._seed = seed

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """Votes on the prompts: float64 (prompts,); NaN where there is none.

        Raises:
            JudgeError: The votes are of other answers.
            ConfigError: The file holds what is no vote.
        """
        ballots = make_ballots(prompts, first, second, self._seed)
        votes = [] if self._votes is None else read_votes(self._votes)
        preferences = count_votes(ballots, votes, len(prompts))
        if self._votes is None:
            self._box.keep(prompts, first, second)
            self._ask(ballots)
        return preferences

    def _ask(self, ballots: Sequence[Ballot]) -> None:
        way = WAYS[self.name]
        if not ballots:
            self.trust = Trust(
                self.trust.words, unable=Text("all answers are alike", "所有回答都相同")
            )
            return
        folder = self._box.folder
        path = folder / way.file
        way.write(path, ballots)
        words = ["python", "-m", "minimind_dpo.evaluate", f"run={folder}", f"judge={self.name}"]
        again = self._box.again or shlex.join(words)
        advice = Text(
            *(
                todo.format(path, f"{command} judge.votes={way.votes}")
                for todo, command in ((way.todo, again), (way.todo.zh, chinese(again)))
            )
        )
        count = len(ballots)
        unable = Text(
            f"nobody has voted on the {count} prompts yet", f"还没有人对这 {count} 个提示投票"
        )
        self.trust = Trust(self.trust.words, unable=unable, advice=advice)
