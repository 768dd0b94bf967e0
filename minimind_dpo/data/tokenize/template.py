"""A chat template: which one is used, and how it is run.

A template is a program from elsewhere. It may raise anything, leave out the answer, write
no token to stop at, or never end. So, before any data is read, one question and its answer are
rendered in a process of its own with limits of time and memory; what fails there is an error in one
sentence.
"""

from __future__ import annotations

import inspect
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from minimind_dpo.batch import Message
from minimind_dpo.data.tokenize.special_tokens import RenderError, any_of
from minimind_dpo.launch import STOP_SIGNALS
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
_SECONDS, _BYTES, _CHARACTERS = 5.0, 2**30, 10**6
"""Limits of rendering the probe: time, memory, length of the text."""


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
            rendered = _limited(self._probe)
        except RenderError as error:
            why = f"one question and its answer cannot be rendered: {error}"
            raise _refusal(why, _ADVICE) from error
        self.end, self.end_token, self.after_end = _split_end(rendered, spellings)

    def _probe(self) -> str:
        self.render(_PROBE[:1], generate=True)
        return self.render(_PROBE)

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
        """
        options = self._options if options is None else {**self._options, **options}
        for name in options.keys() & self._parameters:
            raise RenderError(f"the template option {name!r} is no variable of a chat template")
        try:
            rendered = self._tokenizer.apply_chat_template(
                list(turns),
                tools=tools,
                chat_template=self._text,
                add_generation_prompt=generate,
                tokenize=False,
                **options,
            )
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


def _limited(render: Callable[[], str]) -> str:
    """What `render` returns, computed in a process that is killed beyond a limit."""
    # Within this process a power or a repetition of large numbers could not be interrupted. Only
    # Linux forks safely while threads run; elsewhere there is no limit.
    if sys.platform != "linux":
        return render()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(render, sender), daemon=True)
    with warnings.catch_warnings():
        # Python warns of a fork while threads run; the new process takes no lock of theirs.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    sender.close()
    try:
        if not receiver.poll(_SECONDS):
            raise RenderError(f"it takes longer than {_SECONDS:.0f} seconds")
        rendered, reason = receiver.recv()
    except EOFError:
        raise RenderError("the process that rendered it was killed") from None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if reason:
        raise RenderError(reason)
    return str(rendered)


def _send(render: Callable[[], str], sender: Connection) -> None:
    """In the other process: render within the limits, and send the text or the reason."""
    import resource

    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the process that waits for this one handles them
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * os.sysconf("SC_PAGE_SIZE") + _BYTES
    # The limit of time ends this process where the one that waits for it was killed.
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, 2 * int(_SECONDS) + 1)):
        hard = resource.getrlimit(kind)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(kind, (most, hard))
    try:
        rendered, reason = render(), ""
    except RenderError as error:
        rendered, reason = "", str(error)
    if len(rendered) > _CHARACTERS:
        rendered, reason = "", f"it comes to {len(rendered):,} characters"
    sender.send((rendered, reason))
