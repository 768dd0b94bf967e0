"""The form of a text, whatever it says: what it repeats, and the script it is written in."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_OTHER = re.compile(r"[^\W\d_]")


def repeated_share(ids: Sequence[int], n: int = 4) -> float:
    """Share of a text's n-grams that came before: 0 where all differ, towards 1 in a loop.

    Args:
        ids: Tokens.
        n: Tokens of an n-gram; a shorter text repeats nothing.
    """
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def language_of(text: str) -> str:
    """`zh` where a fifth of the letters is Chinese, else `en` where most are Latin, else `other`.

    A fifth: a Chinese sentence about a program holds many letters in few words.
    """
    han, latin = len(_HAN.findall(text)), len(_LATIN.findall(text))
    letters = len(_OTHER.findall(text))
    if han and han >= letters / 5:
        return "zh"
    return "en" if latin > letters / 2 else "other"
