"""Checks and shapes the parts of a record: turns, tools, numbers.

A turn may be written {"role", "content"} or {"from", "value"}; it leaves here as the first, with
one name for each role, its content as text, and its other keys (reasoning, tool calls) kept.
"""

from __future__ import annotations

import json
import math
from typing import Any

from minimind_dpo.batch import Message

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Role names that are understood, and what each is called here."""


class RecordError(ValueError):
    """A record that is no preference pair; the message goes after `file:line: `."""


def parse_turns(value: Any, where: str) -> list[Message]:
    """Parse a list of turns, none of which may be missing; `where` names it in messages."""
    if not isinstance(value, list):
        raise RecordError(f"{where} is {kind_of(value)}, not a list of turns")
    if not value:
        raise RecordError(f"{where} is an empty list")
    return [parse_turn(turn, f"{where}, turn {number}") for number, turn in enumerate(value, 1)]


def parse_turn(value: Any, where: str) -> Message:
    """Parse one turn: a known role, text, and whatever else it carries that is not null."""
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {kind_of(value)}, not an object with 'role' and 'content'")
    turn = {key: item for key, item in value.items() if item is not None}
    role = turn.pop("role", None) or turn.pop("from", None)
    if not isinstance(role, str) or role not in ROLES:
        shown = "missing" if role is None else f"{role!r:.60}"
        raise RecordError(f"{where}: 'role' is {shown}; known are {', '.join(ROLES)}")
    calls = turn.pop("tool_calls", None)
    if calls:
        calls = parse_json(calls, f"{where}: 'tool_calls'") if isinstance(calls, str) else calls
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise RecordError(f"{where}: 'tool_calls' is not a list of calls")
        turn["tool_calls"] = calls
    content = turn.pop("content", turn.pop("value", None))
    if isinstance(content, list):
        content = _joined(content, where)
    if content is None and turn.get("tool_calls"):
        content = ""
    if content is None:
        raise RecordError(f"{where}: 'content' is missing")
    if not isinstance(content, str):
        raise RecordError(f"{where}: 'content' is {kind_of(content)}, not text")
    if not isinstance(turn.get("reasoning_content", ""), str):
        raise RecordError(f"{where}: 'reasoning_content' is not text")
    return {"role": ROLES[role], "content": content, **turn}


def _joined(parts: list[Any], where: str) -> str:
    """Text of a content that is given in parts."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise RecordError(f"{where}: 'content' has a part that is not text; only text is used")
    return "".join(part["text"] for part in parts)


def parse_tools(value: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """Parse function signatures, given as a list or as its JSON; None where there is none."""
    if value is None or value in ("", []):
        return None
    if isinstance(value, str):
        value = parse_json(value, where)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RecordError(f"{where} is not a list of function signatures")
    return tuple(value) or None


def parse_template_options(value: Any, where: str) -> dict[str, Any] | None:
    """Parse variables of the chat template, given as an object or as its JSON; nulls are absent."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = parse_json(value, where)
    if not isinstance(value, dict):
        raise RecordError(f"{where} is {kind_of(value)}, not an object with variables")
    return {name: item for name, item in value.items() if item is not None} or None


def parse_json(text: str, where: str) -> Any:
    """Read a value that is given as its JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is text that is not JSON: {error}") from error


def parse_number(record: dict[str, Any], key: str, default: float) -> float:
    """Read a finite number from a column, or its default where the column is absent."""
    value = record.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"'{key}' is {kind_of(value)}, not a number")
    if abs(value) > 3e38 or not math.isfinite(value):
        raise RecordError(f"'{key}' is not a finite number")
    return float(value)


def check_json(value: Any) -> None:
    """Refuse what no template can print: half a surrogate pair, dates or bytes of other formats."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RecordError(f"has half of a surrogate pair, which is no text: {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"has a value that is not JSON: {error}") from error


def kind_of(value: Any) -> str:
    """Name a value's JSON type, for messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    names |= {int: "a number", float: "a number", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")
