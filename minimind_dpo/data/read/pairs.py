"""From records to preference pairs, with every problem named by file and line.

Recognised, record by record; `formats` has those whose columns have other names:

    minimind          {"chosen": [turns], "rejected": [turns]}: both begin with the same turns
    prompt_turns      {"prompt": [turns], "chosen": ..., "rejected": ...}
    prompt_text       {"prompt": "text", "chosen": "text", "rejected": "text"}
    sharegpt          {"conversations": [turns], "chosen": ..., "rejected": ...}

A turn is {"role", "content"} or {"from", "value"}; a side is a list of turns, one turn, or text.
Optional columns: `system` (text), `tools` (a list, or its JSON), `chat_template_kwargs` (variables
of the chat template, or their JSON), `margin`, `weight`. Three texts are plain text, unless the
record has one of the first three columns, be it empty: then they are turns, as in the other lines
of its file. The answer is the last assistant turn of each side; turns after it are ignored and
counted, and all turns before it must be the same on both sides. A key that holds null counts as
absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minimind_dpo.batch import Message, PreferencePair
from minimind_dpo.data.read.formats import find_fields
from minimind_dpo.data.read.messages import (
    RecordError,
    check_json,
    kind_of,
    parse_number,
    parse_template_options,
    parse_tools,
    parse_turn,
    parse_turns,
)
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.read.records import iterate_records
from minimind_dpo.data.read.sources import TABLES, DataFile, Files, resolve_files
from minimind_dpo.options.problem import Problem, printable

_NEEDED = ("chosen", "rejected")
"""Columns without which a record is a problem by itself."""


@dataclass(slots=True)
class FileSummary:
    """What reading one file came to.

    Attributes:
        name: The file, as messages call it.
        formats: Pairs of each recognised format.
        pairs: Pairs read.
        problems: Records that could not be used.
        ignored_turns: Turns after the last assistant turn, over both sides.
        ignored_columns: Keys of records that mean nothing here.
    """

    name: str
    formats: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    problems: int = 0
    ignored_turns: int = 0
    ignored_columns: set[str] = field(default_factory=set)

    def add(self, parsed: ParsedRecord) -> None:
        """Count a pair."""
        self.pairs += 1
        self.formats[parsed.kind] += 1
        self.ignored_turns += parsed.ignored_turns
        self.ignored_columns |= {printable(name) for name in parsed.ignored_columns}


class ParsedRecord(NamedTuple):
    """A pair, and what its record held besides.

    Attributes:
        pair: The pair.
        kind: Name of the record's format.
        ignored_turns: Turns after the answers, over both sides.
        ignored_columns: Columns that mean nothing here.
    """

    pair: PreferencePair
    kind: str
    ignored_turns: int
    ignored_columns: set[str]


def read_pairs(
    files: Files,
    *,
    columns: Mapping[str, str] | None = None,
    on_problem: Callable[[Problem], None],
    on_file: Callable[[FileSummary], None] = lambda summary: None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Iterator[PreferencePair]:
    """Read preference pairs, in the order of files and lines.

    Args:
        files: A path, glob, hub data set or several; `sources` has the syntax.
        columns: Columns of the files under other names, `{"prompt": "question"}`.
        on_problem: Called for every record that is no pair.
        on_file: Called with the summary of each file after its last record.
        on_bytes: Called with the bytes read since the last call; they sum to the files' sizes.

    Raises:
        DataError: Where a file cannot be used at all, or a column that `columns` names is in no
            record.
    """
    return read_files(resolve_files(files), columns or {}, on_problem, on_file, on_bytes)


def read_files(
    files: list[DataFile],
    columns: Mapping[str, str],
    on_problem: Callable[[Problem], None],
    on_file: Callable[[FileSummary], None],
    on_bytes: Callable[[int], None],
) -> Iterator[PreferencePair]:
    """The same of files that `resolve_files` returned."""
    absent = {ours: theirs for ours, theirs in columns.items() if ours not in _NEEDED}
    for file in files:
        summary = FileSummary(file.name)
        counted = 0
        for record in iterate_records(file, columns.values()):
            counted += record.size
            on_bytes(record.size)
            if absent and isinstance(record.value, dict):
                absent = {o: theirs for o, theirs in absent.items() if theirs not in record.value}
            try:
                if record.problem:
                    raise RecordError(record.problem)
                parsed = parse_record(record.value, record.source, columns, file.kind in TABLES)
            except RecordError as error:
                summary.problems += 1
                on_problem(Problem(record.source, str(error)))
                continue
            summary.add(parsed)
            yield parsed.pair
        if not summary.pairs and not summary.problems:
            summary.problems += 1
            on_problem(Problem(file.name, "holds no record"))
        on_bytes(max(0, file.size - counted))
        on_file(summary)
    if absent:
        why = f"no record of {', '.join(file.name for file in files)} has this column"
        raise DataError([Problem(f"data.columns.{o}={t}", why) for o, t in absent.items()])


def parse_record(
    record: Any,
    source: str,
    columns: Mapping[str, str] | None = None,
    is_text: bool = False,
) -> ParsedRecord:
    """Turn one object into a pair; `columns` and `is_text` as `find_fields` takes them.

    Raises:
        RecordError: If it is no preference pair.
    """
    fields = find_fields(record, columns or {}, is_text)
    values = fields.values
    margin = parse_number(values, "margin", 0.0)
    weight = parse_number(values, "weight", 1.0)
    if weight < 0:
        raise RecordError(f"'weight' is {weight}, it must not be negative")
    if not fields.speaks and _is_plain(values):
        texts = values["prompt"], values["chosen"], values["rejected"]
        check_json(texts)
        if not values["prompt"].strip():
            raise RecordError("'prompt' is empty")
        pair = PreferencePair(*texts, source, None, margin, weight)
        return ParsedRecord(pair, fields.kind or "prompt_text", 0, fields.ignored)
    before, kind = _explicit_prompt(values)
    chosen, rejected, ignored = _sides(values, _with_system(before, values.get("system")))
    turns = tuple(chosen[:-1])
    if not any(turn["content"].strip() or turn.get("tool_calls") for turn in turns):
        raise RecordError("has no prompt: no turn with text comes before the answer")
    prompt = values.get("prompt")
    if isinstance(prompt, str) and kind == "minimind" and not _quotes(turns, prompt):
        raise RecordError("'prompt' differs from the turns that 'chosen' begins with")
    tools = _tools(values, turns[0])
    options = parse_template_options(values.get("chat_template_kwargs"), "'chat_template_kwargs'")
    check_json([chosen, rejected, tools, options])
    pair = PreferencePair(turns, chosen[-1], rejected[-1], source, tools, margin, weight, options)
    return ParsedRecord(pair, fields.kind or kind, ignored, fields.ignored)


def _tools(values: dict[str, Any], first: Message) -> tuple[dict[str, Any], ...] | None:
    """Function signatures of a pair: its column's, or those that its system turn has."""
    tools = parse_tools(values.get("tools"), "'tools'")
    if tools is None and first["role"] == "system":
        inside = first.get("tools", first.get("functions"))
        tools = parse_tools(inside, "'tools' of the system turn")
    return tools


def _is_plain(values: dict[str, Any]) -> bool:
    """Three texts."""
    if "conversations" in values:
        return False
    return all(isinstance(values.get(key), str) for key in ("prompt", "chosen", "rejected"))


def _explicit_prompt(values: dict[str, Any]) -> tuple[list[Message], str]:
    """Turns of the prompt column, if any, and the format's name."""
    prompt, conversations = values.get("prompt"), values.get("conversations")
    if prompt is not None and conversations is not None:
        raise RecordError("has both 'prompt' and 'conversations'; keep the one that is the prompt")
    if conversations is not None:
        return parse_turns(conversations, "'conversations'"), "sharegpt"
    if prompt is None:
        return [], "minimind"
    if isinstance(prompt, list):
        return parse_turns(prompt, "'prompt'"), "prompt_turns"
    if not isinstance(prompt, str):
        raise RecordError(f"'prompt' is {kind_of(prompt)}, not text or a list of turns")
    sides = (values["chosen"], values["rejected"])
    if all(isinstance(side, list) and len(side) > 1 for side in sides):
        return [], "minimind"
    if not prompt.strip():
        raise RecordError("'prompt' is empty")
    return [{"role": "user", "content": prompt}], "prompt_turns"


def _with_system(before: list[Message], system: Any) -> list[Message]:
    if system is None or system == "":
        return before
    if not isinstance(system, str):
        raise RecordError(f"'system' is {kind_of(system)}, not text")
    if not before:
        raise RecordError("'system' goes with 'prompt' or 'conversations'; here, make it a turn")
    if before[0]["role"] != "system":
        return [{"role": "system", "content": system}, *before]
    if before[0]["content"] != system:
        raise RecordError("'system' differs from the system turn of the prompt")
    return before


def _sides(
    values: dict[str, Any], before: list[Message]
) -> tuple[list[Message], list[Message], int]:
    """Both conversations up to their last assistant turn, and the count of turns after it."""
    conversations, ignored = [], 0
    for key in ("chosen", "rejected"):
        side = _side(values[key], key)
        last = max((i for i, turn in enumerate(side) if turn["role"] == "assistant"), default=-1)
        if last < 0:
            raise RecordError(f"'{key}' has no assistant turn, so there is no answer to prefer")
        ignored += len(side) - last - 1
        conversations.append(before + side[: last + 1])
    chosen, rejected = conversations
    for number, (ours, theirs) in enumerate(zip(chosen[:-1], rejected[:-1], strict=False), 1):
        if ours != theirs:
            raise RecordError(
                f"the prompts of 'chosen' and 'rejected' differ (turn {number}); "
                "all turns before the last answer must be the same"
            )
    if len(chosen) != len(rejected):
        raise RecordError(
            f"the prompts of 'chosen' and 'rejected' differ: {len(chosen) - 1} and "
            f"{len(rejected) - 1} turns come before the last answer"
        )
    return chosen, rejected, ignored


def _side(value: Any, key: str) -> list[Message]:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if isinstance(value, dict):
        return [parse_turn(value, f"'{key}'")]
    return parse_turns(value, f"'{key}'")


def _quotes(turns: tuple[Message, ...], prompt: str) -> bool:
    return any(turn["content"].strip() == prompt.strip() for turn in turns)
