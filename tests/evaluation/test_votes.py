"""The judges `file` and `human`: blind sides, votes by digest, and a page that needs no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind_dpo.disk import read_lines, write_lines
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.judges.ballots import read_votes
from minimind_dpo.evaluation.judges.judge import JudgeError
from minimind_dpo.evaluation.judges.votes import BallotBox, VotesJudge
from minimind_dpo.options.problem import ConfigError

from .planted import asked, written

COUNT = 200
PROMPTS = [asked(f"What is {n}? </script><b>") for n in range(COUNT)]
GOOD = [written(f"good {n}") for n in range(COUNT)]
POOR = [written(f"poor {n}", n % 2 == 0) for n in range(COUNT)]


def box(folder: Path, policy: str = "digest", again: str = "") -> BallotBox:
    return BallotBox(folder, lambda: policy, again)


def ballots_of(name: str, folder: Path, seed: int = 0) -> list[dict[str, Any]]:
    """What a judge without votes writes, as those who vote see it."""
    judge = VotesJudge(name, box(folder), None, seed)
    assert np.isnan(judge.compare(PROMPTS, GOOD, POOR)).all()
    assert not judge.trust.can_judge
    assert judge.trust.unable == f"nobody has voted on the {COUNT} prompts yet"
    if name == "file":
        lines = (folder / "to_judge.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
    page = (folder / "vote.html").read_text(encoding="utf-8")
    data = re.search(r'<script id="ballots" type="application/json">(.*?)</script>', page, re.S)
    assert data is not None
    return json.loads(data[1])  # type: ignore[no-any-return]


def winner(ballot: dict[str, Any]) -> dict[str, Any]:
    """The vote of who likes what is good."""
    good = "a" if ballot["answer_a"].startswith("good") else "b"
    return {"id": ballot["id"], "digest": ballot["digest"], "winner": good}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["file", "human"])
def test_votes_come_back_to_the_answers_whatever_side_they_were_on(
    name: str, tmp_path: Path
) -> None:
    ballots = ballots_of(name, tmp_path)
    votes = {"votes": [winner(ballot) for ballot in ballots]}  # as the page saves them
    file = tmp_path / "votes.json"
    file.write_text(json.dumps(votes), encoding="utf-8")
    judge = VotesJudge(name, box(tmp_path), str(file), 0)
    assert judge.compare(PROMPTS, GOOD, POOR).tolist() == [1.0] * COUNT
    assert judge.trust.can_judge


def test_sides_and_order_are_by_chance_and_the_same_for_a_seed(tmp_path: Path) -> None:
    ballots, again, other = (ballots_of("file", tmp_path, seed) for seed in (0, 0, 1))
    assert ballots == again
    left = sum(winner(ballot)["winner"] == "a" for ballot in ballots)
    assert 75 <= left <= 125  # 200 tosses of a coin: 100, give or take 7
    ids = [int(ballot["id"]) for ballot in ballots]
    assert sorted(ids) == list(range(1, COUNT + 1)) != ids
    changed = sum(winner(a) != winner(b) for a, b in zip(ballots, other, strict=True))
    assert changed > 50


def test_what_is_shown_says_nothing_of_who_wrote_it(tmp_path: Path) -> None:
    """A cut answer is marked; models, seeds and places of files are not there."""
    for name, file in (("file", "to_judge.jsonl"), ("human", "vote.html")):
        ballots = ballots_of(name, tmp_path)
        text = (tmp_path / file).read_text(encoding="utf-8")
        assert not re.search(r"policy|reference|x:1", text)
        cut = [b["cut_b" if winner(b)["winner"] == "a" else "cut_a"] for b in ballots]
        assert sum(cut) == COUNT / 2
        assert "https://" not in text


def test_scores_are_votes_and_prompts_without_one_are_left_open(tmp_path: Path) -> None:
    ballots = ballots_of("file", tmp_path)
    rows = [
        {**ballot, "score_a": 2 if winner(ballot)["winner"] == "a" else 1, "score_b": 1.5}
        for ballot in ballots[:50]
    ]
    rows[0] |= {"score_a": 1.5}
    judge = VotesJudge("file", box(tmp_path), write(tmp_path / "votes.jsonl", rows), 0)
    got = judge.compare(PROMPTS, GOOD, POOR)
    assert np.isnan(got).sum() == COUNT - 50
    assert (got == 1).sum() == 49
    assert got[int(rows[0]["id"]) - 1] == 0.0


def test_votes_on_other_answers_are_refused(tmp_path: Path) -> None:
    votes = write(tmp_path / "votes.jsonl", [winner(b) for b in ballots_of("file", tmp_path)])
    judge = VotesJudge("file", box(tmp_path), votes, 0)
    others = [*GOOD[:-1], written("something new")]
    with pytest.raises(JudgeError, match=rf"1 of {COUNT} votes are of other answers \(id {COUNT} "):
        judge.compare(PROMPTS, others, POOR)
    with pytest.raises(JudgeError, match=rf"{COUNT} of {COUNT} votes"):
        VotesJudge("file", box(tmp_path), votes, 0).compare(PROMPTS[::-1], GOOD, POOR)


def test_answers_alike_are_ties_that_nobody_is_asked_about(tmp_path: Path) -> None:
    judge = VotesJudge("human", box(tmp_path), None, 0)
    got = judge.compare(PROMPTS[:2], GOOD[:2], [GOOD[0], POOR[1]])
    assert got[0] == 0.0
    assert np.isnan(got[1])
    judge.compare(PROMPTS[:2], GOOD[:2], GOOD[:2])
    assert judge.trust.unable == "all answers are alike"


def test_the_run_is_told_where_the_page_is_and_how_votes_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    judge = VotesJudge("human", box(folder), None, 0)
    judge.compare(PROMPTS[:2], GOOD[:2], POOR[:2])
    assert judge.trust.advice == (
        f"Open {folder}/vote.html in a browser, vote with the keys 1 2 3, and save the votes. "
        f"Then: python -m minimind_dpo.evaluate 'run={folder}' judge=human judge.votes=votes.json"
    )
    judge = VotesJudge("human", box(folder, again="the same command with to=x"), None, 0)
    judge.compare(PROMPTS[:2], GOOD[:2], POOR[:2])
    assert judge.trust.advice.endswith("Then: the same command with to=x judge.votes=votes.json")


def test_problems_of_a_vote_file_are_told_with_their_lines(tmp_path: Path) -> None:
    row = {"id": "1", "digest": "d", "winner": "a"}
    rows = [row, row, {**row, "id": "2", "winner": "left"}, {**row, "id": 3}, [], 5, 6, 7, 8]
    path = write(tmp_path / "votes.jsonl", rows)
    with pytest.raises(ConfigError) as caught:
        read_votes(path)
    told = [str(problem).removeprefix(path) for problem in caught.value.problems]
    assert told == [
        ", line 2: votes on id 1 once more, after line 1.",
        ', line 3: needs "winner": "a", "b" or "tie", or numbers score_a and score_b.',
        ", line 4: needs an id and a digest, as they were exported.",
        ", line 5: needs an id and a digest, as they were exported.",
        ", line 6: needs an id and a digest, as they were exported.",
        ": has 3 more problems like these.",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no vote"),
        (b'{"votes": []}', "holds no vote"),
        (b'{"id": 1}\n{"id": ', "cannot be read: line 2 is no JSON"),
        (b"\xff\xfe", "cannot be read"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_holds_no_votes_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "votes.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"judge.votes=.*{why}"):
        read_votes(str(path))


def test_the_page_has_both_languages_and_their_words_are_the_same_ones(tmp_path: Path) -> None:
    ballots_of("human", tmp_path)
    page = (tmp_path / "vote.html").read_text(encoding="utf-8")
    english, chinese = re.findall(r"  (?:en|zh): \{(.*?)\n  \}", page, re.S)
    keys = [set(re.findall(r"(\w+): \"", words)) for words in (english, chinese)]
    said = set(re.findall(r'data-say="(\w+)"', page))
    assert keys[0] == keys[1] == said | {"other"}
    assert "prefers-color-scheme" in page or "color-scheme: light dark" in page
    assert "localStorage" in page


def test_a_conversation_is_shown_whole(tmp_path: Path) -> None:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    prompt = Prompt(np.array([1], np.int32), turns)  # type: ignore[arg-type]
    VotesJudge("file", box(tmp_path), None, 0).compare([prompt], [written("a")], [written("b")])
    (line,) = (tmp_path / "to_judge.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["prompt"] == "system: Be brief.\n\nuser: Hi"


def test_answers_of_one_text_and_other_tokens_are_alike(tmp_path: Path) -> None:
    one = Answer("a", np.array([1, 2], np.int32), True)
    other = Answer("a", np.array([3, 2], np.int32), True)
    judge = VotesJudge("file", box(tmp_path), None, 0)
    assert judge.compare([asked("?")], [one], [other]).tolist() == [0.0]


def test_the_answers_that_are_voted_on_are_kept_with_their_tokens(tmp_path: Path) -> None:
    assert box(tmp_path).kept(PROMPTS) is None
    ballots_of("human", tmp_path)
    kept = box(tmp_path).kept(PROMPTS)
    assert kept is not None
    for got, expected in zip(kept, (GOOD, POOR), strict=True):
        assert [(a.text, a.ended) for a in got] == [(a.text, a.ended) for a in expected]
        assert all((a.ids == b.ids).all() for a, b in zip(got, expected, strict=True))
    others = [Prompt(np.array([9], np.int32), "") for _ in PROMPTS]
    assert box(tmp_path).kept(others) is None


def test_answers_of_one_policy_are_not_those_of_another(tmp_path: Path) -> None:
    ballots_of("human", tmp_path)
    with pytest.raises(ConfigError, match=r"judge.votes: are on answers of another policy"):
        box(tmp_path, "other").kept(PROMPTS)
    # Before they had a line that says whose they are.
    file = tmp_path / "voted_on.jsonl"
    file.write_text(file.read_text(encoding="utf-8").partition("\n")[2], encoding="utf-8")
    with pytest.raises(ConfigError, match="another policy"):
        box(tmp_path).kept(PROMPTS)


def test_line_separators_inside_texts_end_no_line(tmp_path: Path) -> None:
    prompts, text = [asked("one\u2028two\u2029three\x85four")], "five\u2028six"
    judge = VotesJudge("file", box(tmp_path), None, 0)
    judge.compare(prompts, [written(text)], [written("seven")])
    kept = box(tmp_path).kept(prompts)
    assert kept is not None
    assert kept[0][0].text == text
    (ballot,) = read_lines(tmp_path / "to_judge.jsonl")
    votes = tmp_path / "votes.jsonl"
    write_lines(votes, [{**ballot, "winner": "a"}])
    votes.write_text(votes.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # two lines
    again = VotesJudge("file", box(tmp_path), str(votes), 0)
    assert abs(again.compare(prompts, [written(text)], [written("seven")])).tolist() == [1.0]
