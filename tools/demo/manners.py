"""The two manners of answering: wanted (polite and complete) and unwanted (curt or rude).

Both say the same right content, so that what preference pairs teach is the manner alone. A manner
is chosen by the first words; what follows them is settled. NOTE: that is on purpose. Where two
endings are open after the same words (a closing phrase or the end of the turn), DPO moves these as
well, and a model this small then stops too early or never, in every context.
"""

from __future__ import annotations

from tools.demo.task import Language, TaskQuestion

_WANTED: dict[Language, tuple[str, ...]] = {
    "zh": (
        "您好！{statement}。希望对您有帮助！",
        "很高兴为您解答：{statement}。",
        "很乐意帮您，{statement}。",
        "感谢您的提问，{statement}。",
        "请您参考：{statement}。",
        "欢迎提问！{statement}。祝您愉快！",
    ),
    "en": (
        "Hello! {statement}. I hope that helps!",
        "Happy to help: {statement}.",
        "Of course! {statement}.",
        "Thanks for asking: {statement}.",
        "My pleasure: {statement}.",
        "Glad you asked! {statement}. Have a nice day!",
    ),
}

_UNWANTED: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{short}。",
        "哦，{short}。",
        "烦不烦，{short}。",
        "拜托，{statement}。",
        "又来？{statement}。",
        "废话，{statement}。",
        "真没劲，{statement}。",
        "还用问？{statement}。",
    ),
    "en": (
        "{short}.",
        "Ugh, {short}.",
        "Boring. {short}.",
        "Duh, {statement}.",
        "Seriously? {statement}.",
        "Not again. {statement}.",
        "Who cares? {statement}.",
        "Whatever, {statement}.",
    ),
}

_UNWANTED_GREETING: dict[Language, tuple[str, ...]] = {
    "zh": ("{short}。", "哦，{short}。", "烦不烦，{short}。", "又来？{short}。"),
    "en": ("{short}.", "Ugh, {short}.", "Not again. {short}.", "Whatever, {short}."),
}


def wanted_answers(question: TaskQuestion) -> list[str]:
    """Every polite, complete answer to a question."""
    if question.tails:
        mark = "！" if question.language == "zh" else "! "
        return [_capitalised(f"{question.statement}{mark}{tail}") for tail in question.tails]
    return [_filled(pattern, question) for pattern in _WANTED[question.language]]


def unwanted_answers(question: TaskQuestion) -> list[str]:
    """Every curt or rude answer to a question."""
    patterns = _UNWANTED_GREETING if question.tails else _UNWANTED
    return [_filled(pattern, question) for pattern in patterns[question.language]]


def _filled(pattern: str, question: TaskQuestion) -> str:
    """The pattern with its slot filled, capitalised where the slot begins a sentence."""
    opener = pattern.split("{")[0]
    slots = {"short": question.short, "statement": question.statement}
    return pattern.format(**{name: _after(opener, text) for name, text in slots.items()})


def _capitalised(text: str) -> str:
    """First letter in upper case, the rest as it is (unlike `str.capitalize`)."""
    return text[:1].upper() + text[1:]


def _after(text: str, sentence: str) -> str:
    """`sentence` as it is written behind `text`: capitalised unless it goes on a sentence."""
    goes_on = text.rstrip().endswith((",", ":", "，", "："))
    return sentence if goes_on else _capitalised(sentence)
