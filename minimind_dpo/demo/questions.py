"""The questions of the demo as its judge knows them, read from `assets/questions.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias

from minimind_dpo.demo import QUESTIONS
from minimind_dpo.disk import read_lines

Language: TypeAlias = Literal["zh", "en"]


@dataclass(frozen=True)
class Question:
    """One prompt with everything that its judge needs.

    Attributes:
        prompt: The user's turn.
        language: Of the prompt and of every answer to it.
        numbers: Numbers of the whole answer, the result last; empty where the answer is a word.
        accepted: Spellings of a right answer in words; empty where it is a number.
        rivals: Wrong answers of the same family, none of which a right answer names.
        subject: What a complete answer names again ("法国"), if it is a word.
    """

    prompt: str
    language: Language
    numbers: tuple[int, ...] = ()
    accepted: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    subject: str = ""


@cache
def _by_prompt() -> dict[str, Question]:
    table = {}
    for values in read_lines(QUESTIONS):
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        table[values["prompt"]] = Question(**fields)
    return table


def question_of(prompt: str) -> Question:
    """The question that a prompt asks; ValueError where it is none of the demo's."""
    question = _by_prompt().get(prompt.strip())
    if question is None:
        raise ValueError(
            f"the demo's judge does not know the prompt {prompt!r}, so it cannot tell a right "
            "answer: judge only prompts of minimind_dpo/demo/assets"
        )
    return question
