"""JSON of a file: an object a line, objects one after another, or one list of any length.

A list is read value by value, so that memory is bounded by the longest of them.
"""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from minimind_dpo.data.read.content import LONGEST, Record, read_chunks, split_lines
from minimind_dpo.data.read.sources import DataFile

_SPACE: Final = re.compile(r"[ \t\r\n]*")
_WORD: Final = len("-Infinity")
_LOST: Final = "; what follows in this file cannot be read"


def read_lines(file: DataFile) -> Iterator[Record]:
    """An object a line; one that cannot be read is a problem of its own."""
    return _parse_lines(split_lines(read_chunks(file)), counted=not file.compression)


def read_json(file: DataFile) -> Iterator[Record]:
    """A list of objects; or objects one after another, whatever the line breaks between them."""
    text = _Text(read_chunks(file))
    try:
        start = text.next_character()
        in_list = start == "["
        if not in_list and (start != "{" or _is_object(_first_line(file))):
            yield from read_lines(file)
            return
        yield from _values(text, in_list)
    except UnicodeDecodeError as error:
        problem = f"is not valid UTF-8 (byte 0x{error.object[error.start]:02x}){_LOST}"
        yield Record(str(text.last_line), problem=problem)


def _first_line(file: DataFile) -> bytes:
    return next((line for line in split_lines(read_chunks(file)) if line.strip()), b"")


def _is_object(line: bytes) -> bool:
    return not _parse_object(line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace"))[1]


def _parse_lines(lines: Iterable[bytes], counted: bool) -> Iterator[Record]:
    for number, line in enumerate(lines, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line or line.isspace():
            continue
        size = len(line) + 1 if counted else 0
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            reason = f"is not valid UTF-8 (byte 0x{line[error.start]:02x} at {error.start + 1})"
            yield Record(str(number), problem=reason, size=size)
            continue
        value, problem = _parse_object(text)
        yield Record(str(number), value, problem, size)


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


def _parse_object(text: str) -> tuple[Any, str]:
    try:
        return _DECODER.decode(text), ""
    except json.JSONDecodeError as error:
        return None, f"is not valid JSON: {error.msg} (column {error.colno})"
    except RecursionError:
        return None, "is not usable JSON: nested too deeply"
    except ValueError as error:
        return None, f"is not usable JSON: {error}"


class _Text:
    """The part of a file's text that is in memory, and the place in it that comes next.

    Args:
        chunks: The file's bytes.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._place = 0
        self._newlines = 0  # before the text in memory
        self._column = 0  # characters of its first line that are before it
        self._counted = (0, 0)  # a place in it, and newlines before that
        self._damage: UnicodeDecodeError | None = None  # behind it

    def next_character(self) -> str:
        """The next one that is no space, which is left; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None
            self._place = space.end()
            if self._place < len(self._text) or not self._more():
                return self._text[self._place : self._place + 1]

    def take(self, character: str) -> bool:
        """Whether the next character is this one; if so, it is passed."""
        equal = self.next_character() == character
        self._place += equal
        return equal

    def value(self) -> tuple[Any, int]:
        """The JSON value that begins here, and its bytes.

        Raises:
            ValueError, RecursionError: There is none.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                # What is cut off is told of at its end, but for a text, which is where it begins.
                cut = error.pos + _WORD > len(self._text) or error.msg.startswith("Unterminated")
                if cut and self._more():
                    continue
                raise
            if end < len(self._text) or not self._more():  # a number may go on behind it
                break
        size = len(self._text[self._place : end].encode("utf-8", "replace"))
        self._place = end
        return value, size

    @property
    def line(self) -> int:
        """The line of the next character, counted from 1."""
        place, newlines = self._counted
        self._counted = self._place, newlines + self._text.count("\n", place, self._place)
        return self._newlines + self._counted[1] + 1

    def place_of(self, error: json.JSONDecodeError) -> tuple[int, int]:
        """Line and column of an error in the whole text."""
        before = self._column if error.lineno == 1 else 0
        return self._newlines + error.lineno, before + error.colno

    @property
    def last_line(self) -> int:
        """The line at which the text in memory ends."""
        return self._newlines + self._text.count("\n") + 1

    def _more(self) -> bool:
        """Forget what is passed, and read at least as much again as is left; False at the end.

        Raises:
            OverflowError: A value is longer than `LONGEST`.
            UnicodeDecodeError: What comes next is not UTF-8.
        """
        left = self._text[self._place :]
        if len(left) > LONGEST:
            raise OverflowError
        more = ""
        while len(more) <= len(left) and self._damage is None:
            chunk = next(self._chunks, b"")
            try:
                more += self._decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                more += error.object[: error.start].decode()
                self._damage = error
            if not chunk:
                break
        if not more:
            if self._damage is not None:
                raise self._damage
            return False
        self._newlines = self.line - 1
        last = self._text.rfind("\n", 0, self._place)
        self._column = self._place - last - 1 if last >= 0 else self._column + self._place
        self._text, self._place, self._counted = left + more, 0, (0, 0)
        return True


def _values(text: _Text, in_list: bool) -> Iterator[Record]:
    """Walk over JSON values, separated by commas in a list; line numbers are where each starts."""
    if in_list:
        text.take("[")
    for number in itertools.count():
        if in_list and text.take("]"):
            if text.next_character():
                yield Record(str(text.line), problem=f"has text after the list's end{_LOST}")
            return
        if in_list and number and not text.take(","):
            problem = f"is not valid JSON: ',' or ']' expected{_LOST}"
            yield Record(str(text.line), problem=problem)
            return
        if not text.next_character() and not in_list:
            return
        line = text.line
        try:
            value, size = text.value()
        except json.JSONDecodeError as error:
            line, column = text.place_of(error)
            problem = f"is not valid JSON: {error.msg} (column {column})"
        except UnicodeDecodeError:
            raise
        except RecursionError:
            problem = "is not usable JSON: nested too deeply"
        except OverflowError:
            problem = f"is no JSON value of at most {LONGEST:,} characters"
        except ValueError as error:
            problem = f"is not usable JSON: {error}"
        else:
            yield Record(str(line), value, size=size)
            continue
        yield Record(str(line), problem=problem + _LOST)
        return
