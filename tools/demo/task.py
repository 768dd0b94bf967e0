"""The questions of the demo, their right answers, and which of them DPO may see.

Four kinds, in Chinese and English: arithmetic, units, facts and greetings. A *topic* is what is
asked (`add:3:5`), a *prompt* is one way to ask it ("3加5等于多少？"). Supervised fine-tuning
teaches the answer to every prompt, in both manners evenly, so it tells nothing of preferences.
For these the prompts are split by a hash:

    pairs      may be in the preference data
    held_out   never are: validation and the judge ask these
    unused     never are: they ask a held-out topic in other words

An arithmetic or unit topic that is held out is so in both languages and however it is phrased, so
DPO never sees its operands. Facts and greetings are a closed set: there the phrasing is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, TypeAlias

from minimind_dpo.demo.questions import Language, Question
from tools.demo.facts import FAMILIES
from tools.demo.greetings import GREETINGS

Split: TypeAlias = Literal["pairs", "unused", "held_out"]

_ONE_TOPIC_IN = 6  # arithmetic and unit topics is held out


@dataclass(frozen=True, kw_only=True)
class TaskQuestion(Question):
    """A question with what answers are made of, and what training may see of it.

    Attributes:
        kind: `arithmetic`, `units`, `facts` or `greetings`.
        topic: What is asked, however it is phrased, in whatever language.
        short: The bare answer, "8".
        statement: The answer as a whole sentence without its full stop, "3加5等于8".
        tails: Polite last sentences that fit a greeting; empty for the other kinds.
        split: Which data may contain this prompt; see the module's docstring.
    """

    kind: str
    topic: str
    short: str
    statement: str
    tails: tuple[str, ...] = ()
    split: Split = "pairs"


def _hash(text: str) -> int:
    """A number of 64 bits, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


_OPERATIONS: dict[str, dict[Language, tuple[str, str]]] = {
    # operation: language: (word, sign)
    "add": {"zh": ("加", "+"), "en": ("plus", "+")},
    "subtract": {"zh": ("减", "-"), "en": ("minus", "-")},
    "multiply": {"zh": ("乘以", "×"), "en": ("times", "×")},
}

_ARITHMETIC_PROMPTS: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{a}{word}{b}等于多少？",
        "请问{a}{sign}{b}是多少？",
        "{a}{sign}{b}=？",
        "帮我算一下{a}{word}{b}。",
    ),
    "en": (
        "What is {a} {word} {b}?",
        "How much is {a} {sign} {b}?",
        "{a} {sign} {b} = ?",
        "Please work out {a} {word} {b}.",
    ),
}


def _operands() -> Iterator[tuple[str, int, int, int]]:
    """Operation, both operands and the result of every sum in the demo."""
    for a in range(1, 10):
        for b in range(1, 10):
            yield "add", a, b, a + b
    for a in range(2, 11):
        for b in range(1, a):
            yield "subtract", a, b, a - b
    for a in range(2, 8):
        for b in range(2, 8):
            yield "multiply", a, b, a * b


def _arithmetic(language: Language) -> Iterator[TaskQuestion]:
    statement = "{a}{word}{b}等于{r}" if language == "zh" else "{a} {word} {b} is {r}"
    for operation, a, b, r in _operands():
        word, sign = _OPERATIONS[operation][language]
        for prompt in _ARITHMETIC_PROMPTS[language]:
            yield TaskQuestion(
                prompt=prompt.format(a=a, b=b, word=word, sign=sign),
                language=language,
                kind="arithmetic",
                topic=f"{operation}:{a}:{b}",
                short=str(r),
                statement=statement.format(a=a, b=b, r=r, word=word),
                numbers=(a, b, r),
            )


_UNITS: tuple[tuple[str, str, str, str, int], ...] = (
    # zh large, zh small, en large, en small, small ones in a large one
    ("小时", "分钟", "hours", "minutes", 60),
    ("分钟", "秒", "minutes", "seconds", 60),
    ("周", "天", "weeks", "days", 7),
    ("年", "个月", "years", "months", 12),
    ("公里", "米", "kilometres", "metres", 1000),
    ("米", "厘米", "metres", "centimetres", 100),
    ("公斤", "克", "kilograms", "grams", 1000),
)

_UNIT_PROMPTS: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{n}{large}等于多少{small}？",
        "{n}{large}是多少{small}？",
        "请把{n}{large}换算成{small}。",
    ),
    "en": (
        "How many {small} are in {n} {large}?",
        "What is {n} {large} in {small}?",
        "Please convert {n} {large} to {small}.",
    ),
}


def _units(language: Language) -> Iterator[TaskQuestion]:
    for row in _UNITS:
        large, small = row[:2] if language == "zh" else row[2:4]
        for n in range(2, 10):
            r = n * row[4]
            zh = language == "zh"
            for prompt in _UNIT_PROMPTS[language]:
                yield TaskQuestion(
                    prompt=prompt.format(n=n, large=large, small=small),
                    language=language,
                    kind="units",
                    topic=f"{row[2]}:{n}",
                    short=f"{r}{small}" if zh else f"{r} {small}",
                    statement=f"{n}{large}等于{r}{small}" if zh else f"{n} {large} are {r} {small}",
                    numbers=(n, r),
                )


def _facts(language: Language) -> Iterator[TaskQuestion]:
    for family in FAMILIES:
        if family.language != language:
            continue
        for subject, answer in family.answers.items():
            for prompt in family.prompts:
                yield TaskQuestion(
                    prompt=prompt.format(subject=subject),
                    language=language,
                    kind="facts",
                    topic=f"{family.name}:{subject}",
                    short=answer,
                    statement=family.statement.format(subject=subject, answer=answer),
                    accepted=(answer,),
                    rivals=tuple(sorted(set(family.answers.values()) - {answer, subject})),
                    subject=subject,
                )


def _greetings(language: Language) -> Iterator[TaskQuestion]:
    for greeting in GREETINGS:
        if greeting.language != language:
            continue
        for prompt in greeting.prompts:
            yield TaskQuestion(
                prompt=prompt,
                language=language,
                kind="greetings",
                topic=f"greeting:{greeting.name}",
                short=greeting.short,
                statement=greeting.statement,
                accepted=greeting.accepted,
                tails=greeting.tails,
            )


def _split(phrasings: list[TaskQuestion]) -> Iterator[TaskQuestion]:
    """Assign the prompts of one topic in one language to data that may contain them."""
    shuffled = sorted(phrasings, key=lambda question: _hash(question.prompt))
    first = shuffled[0]
    closed_set = first.kind in ("facts", "greetings")
    if closed_set or _hash(first.topic) % _ONE_TOPIC_IN == 0:
        held_out = 1 if closed_set else len(shuffled) // 2
        rest: Split = "pairs" if closed_set else "unused"
    else:
        held_out, rest = 0, "pairs"
    for rank, question in enumerate(shuffled):
        yield replace(question, split="held_out" if rank < held_out else rest)


@lru_cache(maxsize=1)
def questions() -> tuple[TaskQuestion, ...]:
    """Every question of the demo, in a fixed order."""
    topics: dict[tuple[str, Language], list[TaskQuestion]] = {}
    languages: tuple[Language, ...] = ("zh", "en")
    for maker in (_arithmetic, _units, _facts, _greetings):
        for language in languages:
            for question in maker(language):
                topics.setdefault((question.topic, language), []).append(question)
    return tuple(question for phrasings in topics.values() for question in _split(phrasings))
