"""`chat`: read questions, write answers as they are drawn, in a terminal or from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from minimind_dpo import os_errors
from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.special_tokens import RenderError
from minimind_dpo.evaluation.answers import Lend
from minimind_dpo.evaluation.conversation import Conversation, Sampling
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.options.problem import ConfigError, Problem, did_you_mean
from minimind_dpo.run.evaluation import reference_of
from minimind_dpo.run.folder import write_json
from minimind_dpo.run.policy import device_of, load_policy

_HELP: Final = {
    "/reset": "forget all turns",
    "/compare": "the reference's answer to the last question beside the policy's, same draws",
    "/save FILE": "write the conversation as JSON",
    "/help": "this list",
}
_ENDING: Final = "Ctrl-C stops an answer, Ctrl-D leaves."


def talk(config: Config, run: Path | None, system: str | None, sampling: Sampling) -> None:
    """Answer what standard input says, until it ends.

    Args:
        config: Of the run, or with `model.path`.
        run: A run's folder; None for `model.path`.
        system: What a system's turn says.
        sampling: How answers are drawn.

    Raises:
        ConfigError, CheckpointError: What is wrong with the model or its chat template.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Whatever the terminal's locale says: the models write Chinese.
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    policy, chat = load_policy(config, run, device_of(config))
    if system is not None and not chat.has_template:
        why = "needs a chat template, but the tokenizer has none"
        raise ConfigError([Problem("system", why, "Give data.chat_template=FILE.", system)])
    alone = run is None and config.reference.path is None
    reference = None if alone else reference_of(config, policy.model)
    talker = Talker(policy, Conversation(chat, sampling, system), reference, sys.stdin.isatty())
    if talker.terminal:
        talker.tell(f"{policy.describe()}\n{_ENDING} /help lists commands.")
        if not chat.has_template:
            talker.tell("There is no chat template: each text is continued by itself.")
    for line in talker.lines():
        talker.take(line)


class Talker:
    """One who asks, and a model that answers.

    Args:
        policy: The model.
        conversation: Its turns.
        reference: Whose answers are shown beside; None for none.
        terminal: Whether a person types; else answers alone are written to standard output.
    """

    def __init__(
        self,
        policy: LoadedModel,
        conversation: Conversation,
        reference: Lend | None,
        terminal: bool,
    ) -> None:
        self.policy = policy
        self.conversation = conversation
        self.reference = reference
        self.terminal = terminal

    def lines(self) -> Iterator[str]:
        """What is said, a line each, until the end of input."""
        if not self.terminal:
            yield from sys.stdin
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - arrow keys and earlier lines
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                self.tell(f"\n{_ENDING}")
            except EOFError:
                print()
                return

    def take(self, line: str) -> None:
        """Answer a line, or do what it commands."""
        line = line.strip("\r\n")
        if not line.strip():
            return
        if not line.startswith("/"):
            self._ask(line)
            return
        command, _, argument = line.partition(" ")
        does: dict[str, Callable[[str], None]] = {
            "/reset": self._reset,
            "/compare": self._compare,
            "/save": self._save,
            "/help": self._help,
        }
        if command in does:
            does[command](argument.strip())
        else:
            fix = did_you_mean(command, does) or "/help lists them."
            self.tell(f"{command}: there is no such command. {fix}")

    def tell(self, text: str) -> None:
        """Say something that is no answer."""
        print(text, file=sys.stdout if self.terminal else sys.stderr, flush=True)

    def _ask(self, question: str) -> None:
        pieces: list[str] = []

        def write(piece: str) -> None:
            pieces.append(piece)
            print(piece, end="", flush=True)

        try:
            self.conversation.answer(self.policy.model, question, write, self.tell)
        except KeyboardInterrupt:
            if not self.terminal:
                raise
        except RenderError as error:
            self.tell(f"This cannot be asked: {error}")
            return
        print(flush=True)
        self.conversation.add(question, "".join(pieces))

    def _compare(self, argument: str) -> None:
        turns = self.conversation.turns
        if self.reference is None or not turns:
            why = "ask something first" if turns == [] else "give reference.path=MODEL"
            self.tell(f"/compare: there is nothing to compare; {why}")
            return
        question, answer = (str(turn["content"]) for turn in turns[-2:])
        before = replace(self.conversation, turns=turns[:-2])
        with self.reference() as model:
            other = before.answer(model, question, lambda piece: None, lambda text: None)
        if not self.terminal:
            print(other, flush=True)
            return
        table = Table(expand=True)
        for name in ("policy", "reference"):
            table.add_column(name, ratio=1)
        table.add_row(Text(answer), Text(other))
        Console().print(table)

    def _reset(self, argument: str) -> None:
        self.conversation.turns.clear()
        self.tell("All turns are forgotten.")

    def _save(self, argument: str) -> None:
        if not argument:
            self.tell("/save: name a file, as in /save talk.json")
            return
        conversation = self.conversation
        content = {
            "model": self.policy.path,
            "sampling": {k: getattr(conversation.sampling, k) for k in Sampling.__slots__},
            "messages": [*conversation.head, *conversation.turns],
        }
        try:
            write_json(content, Path(argument).expanduser())
        except (OSError, ValueError) as error:  # `/` and `.` are no names
            self.tell(f"/save: {os_errors.explain(error) or error}")
        else:
            self.tell(f"Saved: {argument}")

    def _help(self, argument: str) -> None:
        for command, does in _HELP.items():
            self.tell(f"{command:<11} {does}")
        self.tell(_ENDING)
