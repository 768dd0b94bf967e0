"""Sentences in English that know what they are in Chinese, so that both are written at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

LANGUAGES: Final = ("en", "zh")
"""Of a run's page."""


class Text(str):
    """An English text with the Chinese one beside it.

    Attributes:
        zh: The Chinese one.
    """

    zh: str

    def __new__(cls, en: str, zh: str) -> Text:
        """Of both."""
        text = super().__new__(cls, en)
        text.zh = zh
        return text


def chinese(text: str) -> str:
    """A text in Chinese; itself where it has no language of ours: a name, or an error's words."""
    return text.zh if isinstance(text, Text) else text


def join(texts: Iterable[str], en: str = "", zh: str = "") -> Text:
    """Texts one after another, with a separator in each language."""
    texts = list(texts)
    return Text(en.join(texts), zh.join(map(chinese, texts)))
