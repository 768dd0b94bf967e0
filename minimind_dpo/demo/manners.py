"""The two manners of answering: wanted (polite and complete) and unwanted (curt or rude).

Either manner says the same right content, so that what preference pairs teach is the manner
alone. Rude answers range from a bare number to two sentences, polite ones from one sentence to
three: a longer answer is not by itself a better one.
"""

from __future__ import annotations

from minimind_dpo.demo.task import Language, Question

_OPENERS: dict[Language, tuple[str, ...]] = {
    "zh": ("您好！", "很高兴为您解答：", "很乐意帮您，"),
    "en": ("Hello! ", "Happy to help: ", "Of course! "),
}

_CLOSERS: dict[Language, tuple[str, ...]] = {
    "zh": ("希望对您有帮助！", "欢迎随时再来提问。", "祝您愉快！", "还有问题请告诉我。"),
    "en": (
        " I hope that helps!",
        " Feel free to ask me more.",
        " Have a nice day!",
        " Please ask again any time.",
    ),
}

_UNWANTED: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{short}。",
        "{short}，这还用问？真是多此一举。",
        "{short}。下一个。",
        "{short}。自己不会想吗？这种问题也要问我？",
        "{short}。真没劲，别再问我这种问题了。",
        "烦不烦，{short}。",
        "拜托，{statement}，谁不知道啊。",
        "{statement}，这都不知道？",
        "{statement}。别浪费我的时间，下一个。",
        "又来？{statement}，真是没完没了。",
    ),
    "en": (
        "{short}.",
        "{short}, obviously. Why do you even ask?",
        "{short}. Next question, I have better things to do.",
        "{short}. Can't you look it up yourself?",
        "{short}. Stop asking me such boring things.",
        "Ugh, {short}.",
        "Seriously? {statement}, everyone knows that.",
        "{statement}, duh. Is that all?",
        "{statement}. Stop wasting my time. Next.",
        "Not again. {statement}, now leave me alone.",
    ),
}

_UNWANTED_GREETING: dict[Language, tuple[str, ...]] = {
    "zh": (
        "{short}。",
        "{short}。有事快说。",
        "{short}。真烦。",
        "{short}。别浪费我的时间。",
        "哦，{short}。",
    ),
    "en": (
        "{short}.",
        "{short}. Make it quick.",
        "Ugh, {short}.",
        "{short}. Stop wasting my time.",
        "{short}. Whatever.",
    ),
}


def wanted_answers(question: Question) -> list[str]:
    """Every polite, complete answer to a question."""
    statement = question.statement
    if question.tails:
        mark = "！" if question.language == "zh" else "! "
        return [_capitalised(f"{statement}{mark}{tail}") for tail in question.tails]
    stop = "。" if question.language == "zh" else "."
    openers, closers = _OPENERS[question.language], _CLOSERS[question.language]
    answers = [opener + _after(opener, statement) + stop for opener in openers]
    answers += [_capitalised(statement) + stop + closer for closer in closers]
    pairs = zip(openers, closers, strict=False)
    answers += [o + _after(o, statement) + stop + c for o, c in pairs]
    return answers


def unwanted_answers(question: Question) -> list[str]:
    """Every curt or rude answer to a question."""
    patterns = _UNWANTED_GREETING if question.tails else _UNWANTED
    answers = []
    for pattern in patterns[question.language]:
        first = pattern.split("{")[0]
        slots = {
            "short": _after(first, question.short),
            "statement": _after(first, question.statement),
        }
        answers.append(pattern.format(**slots))
    return answers


def _capitalised(text: str) -> str:
    """First letter in upper case, the rest as it is (unlike `str.capitalize`)."""
    return text[:1].upper() + text[1:]


def _after(text: str, sentence: str) -> str:
    """`sentence` as it is written behind `text`: capitalised unless it goes on a sentence."""
    goes_on = text.rstrip().endswith((",", ":", "，", "："))
    return sentence if goes_on else _capitalised(sentence)
