"""From the columns of a file to those that every pair is read from.

Known by their columns, beside the names of this program:

    orca      {"question", "chosen", "rejected"} and perhaps "system"
    alpaca    {"instruction", "chosen", "rejected"} and perhaps "input", "history", "system"
    hh        {"chosen", "rejected"}, both texts "Human: ... Assistant: ..."

Others are named by `data.columns`: {"prompt": "question"} takes the prompt from `question`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minimind_dpo.batch import Message
from minimind_dpo.data.read.messages import RecordError, kind_of, parse_json

OF_TURNS = ("system", "tools", "chat_template_kwargs")
"""Columns of files that hold conversations."""
COLUMNS = ("prompt", "conversations", "chosen", "rejected", *OF_TURNS, "margin", "weight")
"""What a pair is read from."""
KNOWN = (*COLUMNS, "question", "instruction", "input", "history")
"""Columns that mean something in one format or another."""

_NUMBERS = ("margin", "weight")
_SHOWN = 8
_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Fields:
    """A record under the names of `COLUMNS`.

    Attributes:
        values: What is there and is not null.
        kind: Name of the format; empty where it depends on what the sides hold.
        ignored: Columns of the file that mean nothing here.
        speaks: Text is what a user and an assistant said, as the columns of the file show: they are
            a known format's, or there is one of `OF_TURNS`, whatever it holds.
    """

    values: dict[str, Any]
    kind: str
    ignored: set[str]
    speaks: bool


def find_fields(record: Any, names: Mapping[str, str], is_text: bool = False) -> Fields:
    """Find the columns of a record.

    Args:
        record: One object of a file.
        names: Columns of the file that stand for those of `COLUMNS`, `{"prompt": "question"}`.
        is_text: Every value is text, as in CSV: numbers are read from it, empty ones are absent.

    Raises:
        RecordError: `chosen`, `rejected` or the prompt is not there.
    """
    if not isinstance(record, dict):
        raise RecordError(f"is {kind_of(record)}, not an object with 'chosen' and 'rejected'")
    sources = {ours: names.get(ours, ours) for ours in COLUMNS}
    values = {
        ours: record[theirs] for ours, theirs in sources.items() if record.get(theirs) is not None
    }
    if is_text:
        values = _from_text(values)
    _need(("chosen", "rejected"), values, record, names)
    kind, columns = "", set(sources.values())
    if not (_has_prompt(values) or "prompt" in names or "conversations" in names):
        free = {key: value for key, value in record.items() if key not in names.values()}
        more, kind, format_columns = _known_format(free, values)
        values |= more
        columns |= format_columns
    sides = (values["chosen"], values["rejected"])
    if not _has_prompt(values) and not all(isinstance(side, list) for side in sides):
        _need(("prompt",), values, record, names)
    speaks = bool(kind) or any(sources[column] in record for column in OF_TURNS)
    return Fields(values, kind, record.keys() - columns, speaks)


def _has_prompt(values: Mapping[str, Any]) -> bool:
    """Whether it has a column of its own, or both sides begin with it."""
    sides = (values["chosen"], values["rejected"])
    inside = all(isinstance(side, list) and len(side) > 1 for side in sides)
    return "prompt" in values or "conversations" in values or inside


def _need(
    keys: Iterable[str], values: Mapping[str, Any], record: dict[str, Any], names: Mapping[str, str]
) -> None:
    absent = [key for key in keys if values.get(key) is None]
    if not absent:
        return
    said = [f"'{k}' (column {names[k]!r:.40})" if k in names else f"'{k}'" for k in absent]
    columns = ", ".join(f"{key!r:.40}" for key in list(record)[:_SHOWN]) or "none"
    more = ", ..." if len(record) > _SHOWN else ""
    verb = "is" if len(absent) == 1 else "are"
    advice = " ".join(f"data.columns.{key}=NAME" for key in absent)
    raise RecordError(
        f"{' and '.join(said)} {verb} missing (columns: {columns}{more}); "
        f"if another column has it, name it with {advice}"
    )


def _known_format(
    record: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], str, set[str]]:
    """What the columns of a known format stand for, its name, and the columns that it used."""
    question, instruction = record.get("question"), record.get("instruction")
    if question is not None and instruction is not None:
        raise RecordError(
            "has both 'question' and 'instruction'; name the prompt with data.columns.prompt"
        )
    if question is not None:
        return {"prompt": question}, "orca", {"question"}
    if instruction is not None:
        return _alpaca(record), "alpaca", {"instruction", "input", "history"}
    sides = {key: values[key] for key in ("chosen", "rejected")}
    if all(isinstance(s, str) and s.lstrip().startswith("Human:") for s in sides.values()):
        return {key: _dialogue(side) for key, side in sides.items()}, "hh", set()
    return {}, "", set()


def _alpaca(record: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt as LLaMA-Factory makes it: instruction and input are lines of one turn."""
    parts = [record["instruction"], record.get("input")]
    if not all(part is None or isinstance(part, str) for part in parts):
        raise RecordError("'instruction' or 'input' is not text")
    prompt = "\n".join(part for part in parts if part)
    history = record.get("history") or []
    if isinstance(history, str):
        history = parse_json(history, "'history'")
    if not history:
        return {"prompt": prompt}
    turns: list[Message] = []
    for round_ in history if isinstance(history, list) else [history]:
        if not (isinstance(round_, list) and len(round_) == 2):
            raise RecordError("'history' is not a list of [question, answer]")
        roles = ("user", "assistant")
        turns += [{"role": r, "content": t} for r, t in zip(roles, round_, strict=True)]
    return {"prompt": [*turns, {"role": "user", "content": prompt}]}


def _dialogue(text: str) -> list[Message]:
    """Turns of "Human: ... Assistant: ..."."""
    _, *parts = _SPEAKER.split(text.strip())
    return [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def _from_text(values: dict[str, Any]) -> dict[str, Any]:
    """Values of a file without types: an empty answer is an answer, other empty ones are none."""
    values = {k: v for k, v in values.items() if v != "" or k in ("chosen", "rejected")}
    for key in _NUMBERS:
        if key in values:
            try:
                values[key] = float(values[key])
            except (ValueError, TypeError):  # text, or turns in the place of a number
                raise RecordError(f"'{key}' is {values[key]!r:.40}, not a number") from None
    return values
