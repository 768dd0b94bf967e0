"""What a user may set about the verdict: one field for each key `evaluate.*` and `judge.*`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

from minimind_dpo.options.limits import (
    COUNT,
    NOT_NEGATIVE,
    POSITIVE,
    Choices,
    Form,
    Range,
    value_at,
)
from minimind_dpo.options.problem import ConfigError, Problem

JUDGES: Final = (
    "pairs",
    "demo",
    "rules",
    "python",
    "reward_model",
    "endpoint",
    "file",
    "human",
)
"""Who can compare two answers."""

NEEDS: Final = {
    "rules": ("rules",),
    "python": ("python",),
    "reward_model": ("reward_model.path",),
    "endpoint": ("endpoint.url", "endpoint.model"),
}
"""Keys without which a judge can do nothing, and which no other judge reads."""

_READS: Final = {**NEEDS, "endpoint": (*NEEDS["endpoint"], "endpoint.key_env", "endpoint.request")}
"""Keys that no other judge reads, None where they are not given."""

VOTED: Final = ("file", "human")
"""Judges whose votes come back by a file."""


@dataclass
class EvaluateOptions:
    """Answers of policy and reference to the same held-out prompts, and what is measured on them.

    Attributes:
        prompts: Held-out prompts; 0 or None for no verdict.
        every: Optimizer steps between verdicts while training; None for one at the end alone.
        text: File of text that has nothing to do with the task, for perplexity; None takes the
            prompts themselves.
        batch_size: Prompts that are answered at once.
        max_new_tokens: Longest answer in tokens.
        temperature: Of sampling; at 1 the KL divergence is the policy's own.
        seed: Of the choice of prompts and of sampling, whatever the run's seed: runs compare.
    """

    prompts: Annotated[int | None, NOT_NEGATIVE] = 64
    every: Annotated[int | None, COUNT] = None
    text: str | None = None
    batch_size: Annotated[int, COUNT] = 32
    max_new_tokens: Annotated[int, COUNT] = 256
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0


@dataclass
class RewardModelOptions:
    """A sequence classifier with one label.

    Attributes:
        path: Folder or hub name.
        batch_size: Answers that are scored at once.
        max_length: Most tokens of a conversation with its answer.
    """

    path: str | None = None
    batch_size: Annotated[int, COUNT] = 8
    max_length: Annotated[int, COUNT] = 2048


def _is_address(value: object) -> bool:
    return (
        isinstance(value, str) and re.fullmatch(r"https?://[^\s/@?#]+[^\s@?#]*", value) is not None
    )


ADDRESS: Final = Form(
    _is_address,
    "an address such as http://127.0.0.1:8000/v1",
    "A key belongs into an environment variable: judge.endpoint.key_env=NAME.",
)


@dataclass
class EndpointOptions:
    """A chat model behind an OpenAI-compatible address.

    Attributes:
        url: What `/chat/completions` is put after.
        model: Its name there.
        key_env: Environment variable that holds the key; None sends none.
        request: File of the request; None for the package's own.
        cache: Folder of replies, so that no question is asked twice.
        timeout: Seconds that one attempt may take.
        retries: Attempts after the first.
        concurrency: Requests at once.
    """

    url: Annotated[str | None, ADDRESS] = None
    model: str | None = None
    key_env: str | None = None
    request: str | None = None
    cache: str = "outputs/cache/judge"
    timeout: Annotated[float, POSITIVE] = 120.0
    retries: Annotated[int, NOT_NEGATIVE] = 4
    concurrency: Annotated[int, COUNT] = 8


@dataclass
class JudgeOptions:
    """Who compares the answers.

    Attributes:
        name: The judge whose win rate decides; none measures what needs no judge.
        also: A second judge, whose agreement with the first is told.
        fit_pairs: Most training pairs that the judge `pairs` is fitted on, and most held-out pairs
            that it is tested on.
        rules: File of rules, YAML or JSON, for the judge `rules`.
        python: `package.module:function` for the judge `python`.
        votes: File of votes for the judges `file` and `human`; None has them write what is to be
            voted on.
        reward_model: For the judge `reward_model`.
        endpoint: For the judge `endpoint`.
    """

    name: Annotated[str, Choices(*JUDGES, "none")] = "pairs"
    also: Annotated[str | None, Choices(*JUDGES)] = None
    fit_pairs: Annotated[int, COUNT] = 1000
    rules: str | None = None
    python: str | None = None
    votes: str | None = None
    reward_model: RewardModelOptions = field(default_factory=RewardModelOptions)
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)

    @property
    def names(self) -> tuple[str, ...]:
        """The judges that are asked for, the first one first."""
        return tuple(name for name in (self.name, self.also) if name not in (None, "none"))


def endpoint_key(variable: str | None) -> str:
    """The key of the endpoint, from its environment variable; empty where none is named.

    Raises:
        ConfigError: The variable is not set, or no HTTP header can carry what it holds. Neither
            the key nor the variable is shown: a key may have been given in its place.
    """
    if not variable:
        return ""
    key, place = os.environ.get(variable, "").strip(), "judge.endpoint.key_env"
    if not key:
        fix = "It is the name of an environment variable, and never the key itself."
        raise ConfigError([Problem(place, "names a variable that is not set", fix)])
    if not (key.isascii() and key.isprintable()):
        why = "names a variable that holds a line break, or something else that is no key"
        raise ConfigError([Problem(place, why, "Set it to the key alone, on one line.")])
    return key


def evaluate_problems(options: EvaluateOptions) -> Iterator[Problem]:
    """Verdicts while training that are switched off, and a text that is not there."""
    if not options.prompts and options.every is not None:
        fix = "Give evaluate.prompts, or leave evaluate.every out."
        yield Problem("evaluate.every", "asks for verdicts without prompts", fix, options.every)
    if options.text is not None and not os.path.isfile(os.path.expanduser(options.text)):
        yield Problem("evaluate.text", "is not a file", value=options.text)


def judge_problems(options: JudgeOptions, evaluate: EvaluateOptions) -> Iterator[Problem]:
    """A second judge without a first, the same one twice, and keys that a judge lacks."""
    if options.also is not None and options.name == "none":
        fix = f"Use judge.name={options.also}."
        yield Problem("judge.also", "checks a first judge, but judge.name=none", fix, options.also)
    elif options.also == options.name:
        yield Problem("judge.also", "is the first judge as well", value=options.also)
    for name, key in ((name, key) for name, keys in _READS.items() for key in keys):
        place, value = f"judge.{key}", value_at(options, key)
        if name in options.names and value is None and key in NEEDS[name]:
            yield Problem(place, f"is what the judge {name} needs", f"Give {place}=...")
        if name not in options.names and value is not None:
            why, fix = f"is for the judge {name}, which is not asked", f"Use judge={name}."
            # A key may have been given in place of its variable.
            yield Problem(place, why, fix, ... if key == "endpoint.key_env" else value)
    if "endpoint" in options.names:
        try:
            endpoint_key(options.endpoint.key_env)
        except ConfigError as error:
            yield from error.problems
    voted = [name for name in VOTED if name in options.names]
    if len(voted) > 1:
        yield Problem("judge.also", "reads the votes of the first judge", value=options.also)
    if options.votes is not None and not voted:
        fix = f"Use judge={VOTED[0]} or judge={VOTED[1]}."
        yield Problem("judge.votes", "is for a judge that is not asked", fix, options.votes)
    if voted and evaluate.every is not None:
        fix = "Leave evaluate.every out, or use another judge."
        why = f"does not do with the judge {voted[0]}, whose votes come when training has ended"
        yield Problem("evaluate.every", why, fix, evaluate.every)
