"""What the demo asks, what training may see of it, and that both manners are what they claim."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

from minimind_dpo.demo.judge import Verdict, judge
from minimind_dpo.demo.questions import Question, question_of
from tools.demo.manners import unwanted_answers, wanted_answers
from tools.demo.task import questions


def test_every_answer_in_either_manner_is_judged_so_and_right() -> None:
    for question in questions():
        for answer in wanted_answers(question):
            assert judge(question.prompt, answer) == Verdict(True, True), (question.prompt, answer)
        for answer in unwanted_answers(question):
            assert judge(question.prompt, answer) == Verdict(False, True), (question.prompt, answer)


def test_a_phrasing_of_every_fact_and_greeting_is_held_out_and_another_is_not() -> None:
    closed = [q for q in questions() if q.kind in ("facts", "greetings")]
    topics = {(q.topic, q.language) for q in closed}
    assert len(topics) == 2 * (12 + 10 + 7 + 7) + 2 * 6
    for split in ("held_out", "pairs"):
        assert {(q.topic, q.language) for q in closed if q.split == split} == topics


def test_operands_held_out_in_one_language_are_in_no_pair_of_either() -> None:
    open_kinds = ("arithmetic", "units")
    held_out = {q.topic for q in questions() if q.split == "held_out" and q.kind in open_kinds}
    in_pairs = {q.topic for q in questions() if q.split == "pairs" and q.kind in open_kinds}
    assert len(held_out) >= 30
    assert not held_out & in_pairs


def test_no_two_questions_share_a_prompt() -> None:
    prompts = [question.prompt for question in questions()]
    assert len(prompts) == len(set(prompts)) == 1991


def test_the_judge_reads_of_each_question_what_was_written() -> None:
    for question in questions():
        known = question_of(question.prompt)
        assert known == Question(**{f.name: getattr(question, f.name) for f in fields(Question)})
    assert question_of("10 - 7 = ?").numbers == (10, 7, 3)


def test_the_split_is_the_same_in_every_process() -> None:
    program = (
        "from tools.demo.task import questions;"
        "print(hash(tuple(len(q.prompt) for q in questions() if q.split == 'held_out')))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
