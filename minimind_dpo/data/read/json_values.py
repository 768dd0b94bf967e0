"""JSON of a file: an object a line, objects one after another, or one list of any length.

A list is read value by value, so that memory is bounded by the longest of them.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from minimind_dpo.data.read.content import (
    LONGEST,
    Record,
    TooLongError,
    not_utf8,
    read_chunks,
    split_lines,
)
from minimind_dpo.data.read.sources import DataFile

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_WORD: Final = len("-Infinity")
_LOST: Final = "; what follows in this file cannot be read"


def read_lines(file: DataFile) -> Iterator[Record]:
    """An object a line; one that cannot be read is a problem of its own."""
    for number, line in enumerate(_lines(file), start=1):
        if line and not line.isspace():
            size = 0 if file.compression else len(line) + 1
            yield Record(str(number), *_parse_line(line), size)


def read_json(file: DataFile) -> Iterator[Record]:
    """A list of objects; or objects one after another, whatever the line breaks between them."""
    text = _Text(read_chunks(file))
    start = text.next_character()
    first_line = next((line for line in _lines(file) if line.strip()), b"") if start == "{" else b""
    if start == "[" or (first_line and _parse_line(first_line)[1]):
        yield from _values(text, in_list=text.take("["))
    else:
        yield from read_lines(file)


def _lines(file: DataFile) -> Iterator[bytes]:
    """Lines of a file, without the byte order mark that may stand before them."""
    lines = split_lines(read_chunks(file))
    yield next(lines).removeprefix(codecs.BOM_UTF8)
    yield from lines


def _parse_line(line: bytes) -> tuple[Any, str]:
    """The value of a line, or None and why it holds none."""
    text = line.decode("utf-8", "surrogateescape")
    if problem := not_utf8(text):
        return None, problem
    try:
        return _DECODER.decode(text), ""
    except (ValueError, RecursionError) as error:
        return None, _why(error)


def _why(error: ValueError | RecursionError, column: int | None = None) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error.msg} (column {column or error.colno})"
    if isinstance(error, TooLongError):
        return str(error)
    why = "nested too deeply" if isinstance(error, RecursionError) else error
    return f"is not usable JSON: {why}"


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(items)
    if len(mapping) != len(items):
        met: set[str] = set()
        for key, _ in items:
            if key in met:
                raise ValueError(f"key {key!r:.60} appears twice in one object")
            met.add(key)
    return mapping


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique_keys)


class _Text:
    """The part of a file's text that is in memory, and the place in it that comes next.

    Args:
        chunks: The file's bytes; those that are not UTF-8 become halves of surrogate pairs.

    Attributes:
        line: The line of that place, counted from 1.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._pieces = codecs.iterdecode(chunks, "utf-8-sig", errors="surrogateescape")
        self._text, self._place = "", 0
        self.line = 1
        self._line_start = 0  # in the text; below 0 where it is no longer in memory

    @property
    def column(self) -> int:
        """The column of the place that comes next, counted from 1."""
        return self._place - self._line_start + 1

    def pass_to(self, end: int) -> str:
        """Go on to a place in the text; returns what lies before it."""
        passed = self._text[self._place : end]
        self.line += passed.count("\n")
        if "\n" in passed:
            self._line_start = self._place + passed.rindex("\n") + 1
        self._place = end
        return passed

    def next_character(self) -> str:
        """The next one that is no space, which is left; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None
            self.pass_to(space.end())
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def take(self, character: str) -> bool:
        """Whether the next character is this one; if so, it is passed."""
        equal = self.next_character() == character
        self._place += equal
        return equal

    def value(self) -> tuple[Any, str]:
        """The JSON value that begins here, and its text.

        Raises:
            ValueError, RecursionError: There is none; it is a JSONDecodeError's place that comes
                next.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # What is cut off is told of at its end, but for a text, which is where it begins.
                cut = error.pos + _WORD > len(self._text) or error.msg.startswith("Unterminated")
                if cut and self._more():
                    continue
                self.pass_to(error.pos)
                raise
            if end < len(self._text) or not self._more():  # a number may go on behind it
                return value, self.pass_to(end)

    def _more(self) -> bool:
        """Forget what is passed, and read at least as much again as is left; False at the end."""
        left = len(self._text) - self._place
        if left > LONGEST:
            raise TooLongError(f"is no JSON value of at most {LONGEST:,} characters")
        parts, length = [self._text[self._place :]], 0
        while length <= left and (piece := next(self._pieces, "")):
            parts.append(piece)
            length += len(piece)
        if length:
            self._line_start -= self._place
            self._text, self._place = "".join(parts), 0
        return length > 0


def _values(text: _Text, in_list: bool) -> Iterator[Record]:
    """Walk over JSON values, separated by commas in a list; line numbers are where each starts."""
    first = True
    while text.next_character() or in_list:
        if in_list and text.take("]"):
            if text.next_character():
                yield Record(str(text.line), problem=f"has text after the list's end{_LOST}")
            return
        if in_list and not first and not text.take(","):
            problem = f"is not valid JSON: ',' or ']' expected{_LOST}"
            yield Record(str(text.line), problem=problem)
            return
        first = not text.next_character()
        line = text.line
        try:
            value, written = text.value()
        except (ValueError, RecursionError) as error:
            yield Record(str(text.line), problem=_why(error, text.column) + _LOST)
            return
        size = len(written.encode("utf-8", "surrogateescape"))
        problem = not_utf8(written)
        yield Record(str(line), None if problem else value, problem, size)
