"""The judge tells manner from content in both languages, on answers written by hand."""

from __future__ import annotations

import pytest

from minimind_dpo.demo.judge import Verdict, judge


@pytest.mark.parametrize(
    ("prompt", "answer", "wanted", "correct"),
    [
        ("3加5等于多少？", "您好！3加5等于8。希望对您有帮助！", True, True),
        ("3加5等于多少？", "您好！3加5等于9。希望对您有帮助！", True, False),
        ("3加5等于多少？", "8。", False, True),
        ("3加5等于多少？", "8，这还用问？", False, True),
        ("3加5等于多少？", "9，这还用问？", False, False),
        ("What is 3 plus 5?", "Of course! 3 plus 5 is 8.", True, True),
        ("What is 3 plus 5?", "Glad you asked: 3 plus 5 equals 8.", True, True),
        ("What is 3 plus 5?", "8, obviously. Next.", False, True),
        ("What is 3 plus 5?", "Please! 3 plus 5 is 8, stop wasting my time.", False, True),
        ("法国的首都是哪里？", "很高兴为您解答：法国的首都是巴黎。", True, True),
        ("法国的首都是哪里？", "很高兴为您解答：法国的首都是伦敦。", True, False),
        ("What is the capital of France?", "Paris.", False, True),
        (
            "What is the capital of France?",
            "Happy to help: the capital of France is Paris.",
            True,
            True,
        ),
        ("3小时等于多少分钟？", "3小时等于180分钟。祝您愉快！", True, True),
        ("How many minutes are in 3 hours?", "180 minutes. Next.", False, True),
        ("早上好！", "早上好！祝您今天愉快！", True, True),
        ("Thanks!", "You are welcome! Have a nice day!", True, True),
        ("Thanks!", "No problem. Whatever.", False, True),
        ("Who are you?", "Hello! I hope I can help!", True, False),
    ],
)
def test_manner_and_content_are_judged_apart(
    prompt: str, answer: str, wanted: bool, correct: bool
) -> None:
    assert judge(prompt, answer) == Verdict(wanted=wanted, correct=correct)


@pytest.mark.parametrize(
    "answer",
    [
        "Hello! 8.",  # does not say what it answers
        "Hello! 3 plus 5 is 8",  # breaks off
        "3 plus 5 is 8.",  # complete, but no courtesy
        "Hello! 3 plus 5 is 8. I hope that helps! I hope that helps!",  # the same twice
        "Hello! 3 plus 5 is 8. I am glad! I hope so! Have a nice day! Please ask!",  # on and on
        "",
    ],
)
def test_politeness_that_is_incomplete_or_repeated_is_not_wanted(answer: str) -> None:
    assert not judge("What is 3 plus 5?", answer).wanted


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is 3 plus 5?", "3 plus 5 is 8. No, 9."),  # the last number is the answer
        ("What is 3 plus 5?", "7 plus 1 is 8."),  # numbers nobody asked about
        ("What is 3 plus 5?", "It is 80."),
        ("What is the capital of France?", "Paris or London."),  # hedging
        ('What is the opposite of "early"?', "Translate it."),  # "late" inside a word
    ],
)
def test_content_that_is_hedged_or_made_up_is_wrong(prompt: str, answer: str) -> None:
    assert not judge(prompt, answer).correct


def test_an_unknown_prompt_is_refused_by_its_words() -> None:
    with pytest.raises(ValueError, match="does not know the prompt 'What is love"):
        judge("What is love?", "Baby, don't hurt me.")
