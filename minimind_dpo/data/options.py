"""What a user may set about the preference pairs: one field for each key `data.*`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from minimind_dpo.data.read.problems import DataError
from minimind_dpo.data.read.sources import resolve_files
from minimind_dpo.options.limits import (
    COUNT,
    MISSING,
    NOT_NEGATIVE,
    SHARE,
    Choices,
    Form,
    Range,
    as_list,
    is_word,
    limit_problems,
)
from minimind_dpo.options.problem import ConfigError, Problem

PAIRS: Final = 8
"""Of a micro-batch under `data.batch_size=auto`, unless a GPU has room for more or for fewer."""
LAYOUTS: Final = ("prefix_shared", "packed", "padded")
_TEMPLATE: Final = Form(
    is_word, "auto, none, the name of one of the tokenizer's templates, or a file that holds one"
)


def _is_batch_size(value: Any) -> bool:
    return value == "auto" or (type(value) is int and value >= 1)


_BATCH_SIZE: Final = Form(_is_batch_size, "a number of pairs (1 or more), or auto")


@dataclass
class ColumnOptions:
    """Columns of the files that have other names, each under the name that it has here."""

    prompt: str | None = None
    conversations: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    system: str | None = None
    tools: str | None = None
    chat_template_kwargs: str | None = None
    margin: str | None = None
    weight: str | None = None

    def named(self) -> dict[str, str]:
        """Those that are given, `{"prompt": "question"}`."""
        return {ours: theirs for ours, theirs in vars(self).items() if theirs is not None}


@dataclass
class DataOptions:
    """Preference pairs: files, lengths, batches, loading. `conf/data` says what each key means."""

    train: Any = MISSING
    val: Any = None
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    val_fraction: Annotated[float | None, SHARE] = None
    layout: Annotated[str, Choices(*LAYOUTS)] = "prefix_shared"
    pad_to_max_length: bool = False
    batch_size: Annotated[Any, _BATCH_SIZE] = "auto"
    max_length: Annotated[int, Range(2)] = 1024
    max_prompt_length: Annotated[int | None, COUNT] = None
    max_completion_length: Annotated[int | None, COUNT] = None
    chat_template: Annotated[str, _TEMPLATE] = "auto"
    template_options: dict[str, Any] = field(default_factory=dict)
    text_as_turns: bool = False
    empty_think: Annotated[str, Choices("keep", "remove")] = "keep"
    on_error: Annotated[str, Choices("stop", "skip")] = "stop"
    shuffle: bool = True
    drop_last: bool = False
    num_workers: Annotated[int, NOT_NEGATIVE] = 2
    pin_memory: bool | None = None
    cache_dir: str = "outputs/cache"
    tokenize_workers: Annotated[int | None, COUNT] = None

    def __post_init__(self) -> None:
        if self.train != MISSING:
            self.train = as_list(self.train)
        self.val = as_list(self.val)

    @property
    def pairs(self) -> int:
        """`batch_size` before any device is asked."""
        return PAIRS if self.batch_size == "auto" else int(self.batch_size)

    @property
    def lengths(self) -> dict[str, int | None]:
        """The limits in tokens, by name."""
        names = ("max_length", "max_prompt_length", "max_completion_length")
        return {name: getattr(self, name) for name in names}


def data_problems(options: DataOptions) -> Iterator[Problem]:
    """Files that are missing or named twice, and lengths that contradict each other."""
    if not options.train:
        why = "is missing: it names the preference pairs"
        yield Problem("data.train", why, "For example: data.train=dpo.jsonl")
    paths: dict[str, set[str]] = {}
    for key, entries in (("data.train", options.train), ("data.val", options.val)):
        bad = [entry for entry in entries if not is_word(entry)]
        if bad:
            why = "must be a file, a glob, a hub data set or a list of them"
            yield Problem(key, why, value=bad)
        elif entries:
            paths[key] = yield from _file_problems(key, entries)
    for path in sorted(set.intersection(*paths.values()) if len(paths) == 2 else ()):
        why = "is in data.train as well, so validation would measure memory"
        yield Problem("data.val", why, "Leave data.val out to split off unseen prompts.", path)
    yield from _column_problems(options.columns.named())
    yield from _length_problems(options)


def check_data(options: DataOptions) -> None:
    """Refuse options that were built in Python and have no meaning; files are not looked at.

    Raises:
        ConfigError: Naming all of them.
    """
    if problems := [*limit_problems(options, "data.")] or [*_length_problems(options)]:
        raise ConfigError(problems)


def _length_problems(options: DataOptions) -> Iterator[Problem]:
    for key in ("max_prompt_length", "max_completion_length"):
        value = getattr(options, key)
        if value is not None and value >= options.max_length:
            why = (
                f"must be below data.max_length={options.max_length}, which has to hold both sides"
            )
            yield Problem(f"data.{key}", why, value=value)
    if options.pad_to_max_length and options.layout != "padded":
        fix = "Set data.layout=padded as well."
        yield Problem("data.pad_to_max_length", "is for the padded layout alone", fix, True)


def _column_problems(columns: dict[str, str]) -> Iterator[Problem]:
    """Two columns in one, and a prompt that is named twice."""
    for ours, theirs in columns.items():
        key = f"data.columns.{ours}"
        if not theirs:
            yield Problem(key, "is empty", "Name a column of the files, or null.", theirs)
        others = [other for other, name in columns.items() if name == theirs and other != ours]
        if others and ours < others[0]:
            yield Problem(key, f"names the same column as data.columns.{others[0]}", value=theirs)
    if {"prompt", "conversations"} <= columns.keys():
        why = "excludes data.columns.prompt: each names the prompt"
        yield Problem("data.columns.conversations", why, value=columns["conversations"])


def _file_problems(key: str, entries: list[str]) -> Generator[Problem, None, set[str]]:
    """Files that are not there; returns the real paths of those that are."""
    try:
        return {os.path.realpath(file.path) for file in resolve_files(entries)}
    except DataError as error:
        for problem in error.problems:
            yield Problem(key, problem.why, problem.fix, problem.key)
    return set()
