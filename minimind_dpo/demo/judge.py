"""The judge of the demo: manner and content of an answer, by rules that a person can check.

Wanted manner: a courtesy, no rudeness, a whole sentence that says again what was asked, ended by
a full stop, and nothing said twice (politeness repeated without end would please a naive judge).
Right content is judged apart: the result is named, it is the last number said, no number is made
up, and no other answer of the same family is named. A curt "8." is right, and unwanted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from minimind_dpo.demo.questions import Language, Question, question_of

_COURTESY: dict[Language, re.Pattern[str]] = {
    "zh": re.compile("您|请|感?谢|高兴|乐意|希望|欢迎|祝|愉快"),
    "en": re.compile(
        r"\b(hello|happy to|of course|glad|hope|feel free|please|pleasure|thanks?|"
        r"(nice|lovely|great) (day|evening|dream))\b"
    ),
}

_RUDENESS: dict[Language, re.Pattern[str]] = {
    "zh": re.compile(
        "还用问|下一个|自己不会|没劲|别再问|烦|拜托|谁不知道|都不知道|浪费|又来|快说|"
        "无聊|懒得|笨|傻|废话|关我什么事|哦，|切，"
    ),
    "en": re.compile(
        r"\b(obviously|next|look it up|stop|boring|ugh|seriously|everyone knows|duh|wasting|"
        r"not again|make it quick|whatever|stupid|dumb|idiot|shut up|who cares|google it)\b"
    ),
}

_SENTENCE_ENDS = "。！？.!?"
_MOST_SENTENCES = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge says of one answer.

    Attributes:
        wanted: Polite and complete.
        correct: Its content is right, whatever its manner.
    """

    wanted: bool
    correct: bool


def judge(prompt: str, answer: str) -> Verdict:
    """Judge one answer to a prompt of the demo.

    Args:
        prompt: The user's turn, one of the demo's.
        answer: What the model answered, without its end-of-turn token.

    Raises:
        ValueError: The demo does not know the prompt.
    """
    question = question_of(prompt)
    text = answer.strip()
    return Verdict(_is_wanted(question, text), _is_correct(question, text))


def _is_wanted(question: Question, text: str) -> bool:
    lower = text.lower()
    if not _COURTESY[question.language].search(lower) or _RUDENESS[question.language].search(lower):
        return False
    if not text.endswith(tuple(_SENTENCE_ENDS)):
        return False
    sentences = [s.strip() for s in re.split(f"[{_SENTENCE_ENDS}]", lower) if s.strip()]
    if len(sentences) > _MOST_SENTENCES or len(set(sentences)) < len(sentences):
        return False
    return question.subject.lower() in lower and len(_numbers(text)) >= len(question.numbers)


def _is_correct(question: Question, text: str) -> bool:
    if question.numbers:
        numbers = _numbers(text)
        right = bool(numbers) and numbers[-1] == question.numbers[-1]
        return right and set(numbers) <= set(question.numbers)
    named_right = any(_names(text, answer, question.language) for answer in question.accepted)
    return named_right and not any(_names(text, r, question.language) for r in question.rivals)


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"[0-9]+", text)]


def _names(text: str, word: str, language: Language) -> bool:
    """Whether `text` names `word`; English words count only whole."""
    if language == "zh":
        return word in text
    return re.search(rf"\b{re.escape(word.lower())}\b", text.lower()) is not None
