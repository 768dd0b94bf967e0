"""A chat template: which one is used, and how it is run.

A template is a program from elsewhere. It may raise anything, leave out the answer, write
no token to stop at, or never end. So one question and its answer are rendered before any data is
read, and what fails there is an error in one sentence. Every rendering has a limit of time: the
template is interrupted between two of its operations. The one operation of Jinja that takes hours
by itself, a power of large numbers, is refused.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import jinja2

from minimind_dpo.batch import Message
from minimind_dpo.data.tokenize.special_tokens import EndlessError, RenderError, any_of
from minimind_dpo.options.problem import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "sentinelquestion", "sentinelanswer"
_PROBE: list[Message] = [
    {"role": "user", "content": _QUESTION},
    {"role": "assistant", "content": _ANSWER},
]
_ADVICE = (
    "Give another template, data.chat_template=FILE, or none for plain text, "
    "data.chat_template=none."
)
_SECONDS = 5.0
"""CPU time that one rendering may take."""
_BYTES, _CHARACTERS = 2**30, 10**6
"""Limits of rendering the probe: memory, length of the text."""


def find_template(tokenizer: PreTrainedTokenizerBase, choice: str) -> str | None:
    """Text of the template that `data.chat_template` chooses; None for no template.

    Args:
        tokenizer: May have no template, one, or several by name.
        choice: `auto` for the tokenizer's own, if it has one; `none`; the name of one of several;
            a file that holds a Jinja template; or the text of one.

    Raises:
        ConfigError: The choice is none of these.
    """
    template: Any = tokenizer.chat_template
    by_name: Mapping[str, str] = template if isinstance(template, Mapping) else {}
    names = ", ".join(sorted(by_name))
    if choice == "none":
        return None
    if choice == "auto" and not by_name:
        return template or None
    name = "default" if choice == "auto" else choice
    if name in by_name:
        return by_name[name]
    if choice == "auto":
        why = f"the tokenizer has several chat templates ({names}) and none is called default"
        raise _refusal(why, "Name one of them.", choice)
    if "{{" in choice or "{%" in choice:
        return choice
    path = os.path.expanduser(choice)
    if not os.path.isfile(path):
        several = f", one of the tokenizer's templates ({names})" if names else ""
        why = f"is no file; it is auto, none{several} or a file that holds a Jinja template"
        raise _refusal(why, did_you_mean(choice, ["auto", "none", *by_name]), choice)
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _refusal(f"cannot be read: {error}", value=choice) from error


class ChatTemplate:
    """Renders conversations with one template.

    Args:
        tokenizer: Supplies the template's engine and the names of its special tokens.
        text: The template, in Jinja.
        spellings: Of all added tokens, one of which ends an answer.
        options: Further variables of the template, for example `enable_thinking`.

    Attributes:
        end: What the template writes after an answer, up to and with its end-of-turn token.
        end_token: That token.
        after_end: What it writes after that.

    Raises:
        ConfigError: The template cannot be used, or does not read one of `options`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: str,
        spellings: Sequence[str],
        options: Mapping[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._words = frozenset(re.findall(r"\w+", text))
        renderer = inspect.signature(tokenizer.apply_chat_template)
        self._parameters = {"messages", *renderer.parameters}
        self._options = dict(options)
        for name in options:
            if name in self._parameters or not self.reads(name):
                key, why = f"data.template_options.{name}", "the chat template does not read it"
                raise ConfigError([Problem(key, why, value=options[name])])
        try:
            rendered = self._probe()
        except RenderError as error:
            why = f"one question and its answer cannot be rendered: {error}"
            raise _refusal(why, _ADVICE) from error
        self.end, self.end_token, self.after_end = _split_end(rendered, spellings)

    def _probe(self) -> str:
        with contextlib.suppress(jinja2.TemplateSyntaxError):  # told by the rendering, with a line
            if jinja2.Environment().parse(self._text).find(jinja2.nodes.Pow):
                raise RenderError("it uses a power (**), which may take hours")
        with _limited_memory():
            self.render(_PROBE[:1], generate=True)
            rendered = self.render(_PROBE)
        if len(rendered) > _CHARACTERS:
            raise RenderError(f"it comes to {len(rendered):,} characters")
        return rendered

    def reads(self, name: str) -> bool:
        """Whether the template can read a variable of this name: whether its text has the word."""
        return name in self._words

    def render(
        self,
        turns: Sequence[Message],
        tools: Any = None,
        options: Mapping[str, Any] | None = None,
        generate: bool = False,
    ) -> str:
        """Text of a conversation.

        Args:
            turns: The conversation.
            tools: Function signatures.
            options: Variables of the template for this conversation, before those of all.
            generate: Add the header of an answer that is to be generated.

        Raises:
            RenderError: The template fails on this conversation.
            EndlessError: It takes too long for it.
        """
        options = self._options if options is None else {**self._options, **options}
        for name in options.keys() & self._parameters:
            raise RenderError(f"the template option {name!r} is no variable of a chat template")
        try:
            with _limited_time():
                rendered = self._tokenizer.apply_chat_template(
                    list(turns),
                    tools=tools,
                    chat_template=self._text,
                    add_generation_prompt=generate,
                    tokenize=False,
                    **options,
                )
        except EndlessError:
            raise
        except Exception as error:  # a template is a program: it raises nearly anything
            raise RenderError(f"the chat template fails: {_why(error)}") from error
        assert isinstance(rendered, str)
        return rendered


def _split_end(rendered: str, spellings: Sequence[str]) -> tuple[str, str, str]:
    """What follows the probe's answer: up to and with a token, that token, and what is after it."""
    before, answer, after = rendered.rpartition(_ANSWER)
    if not answer or _QUESTION not in before:
        why = "the template leaves out the question or the answer of a plain exchange"
        raise _refusal(why, _ADVICE)
    end = any_of(spellings).search(after)
    if end is None:
        why = (
            f"the template writes {after!r:.60} after an answer, in which there is no token to "
            "stop at; a model trained on it would never end an answer"
        )
        raise _refusal(why, _ADVICE)
    return after[: end.end()], end[0], after[end.end() :]


def _refusal(why: str, fix: str = "", value: Any = ...) -> ConfigError:
    return ConfigError([Problem("data.chat_template", why, fix, value)])


def _why(error: Exception) -> str:
    """An error's reason in one line; the class where the message alone says too little."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, jinja2.TemplateSyntaxError):
        text += f" (line {error.lineno})"
    kind = type(error).__name__
    return text if kind == "TemplateError" else f"{kind}: {text}".rstrip(": ")


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    """Let what runs inside raise `EndlessError` once it has taken `_SECONDS` of CPU time.

    Signals and their timers are the main thread's; in another one, and on Windows, which has no
    such timers, there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    end = time.thread_time() + _SECONDS

    def look(number: int, frame: FrameType | None) -> None:
        if time.thread_time() > end:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            raise EndlessError(f"the chat template takes longer than {_SECONDS:g} seconds")

    before = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS, _SECONDS / 10)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """Let what runs inside raise `MemoryError` where it takes `_BYTES` more than there are now.

    Only Linux can tell and limit what a process takes.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * os.sysconf("SC_PAGE_SIZE") + _BYTES
    if limits[0] == resource.RLIM_INFINITY or most < limits[0]:
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
