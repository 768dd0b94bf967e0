"""Talk with a model: `python -m minimind_dpo.chat run=RUN`, or `model.path=MODEL`.

Commands while talking: /help. From a pipe each line is a turn, and answers alone are written. Exit
codes: 0 done, 2 wrong input, 141 nobody reads the answers any more.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from minimind_dpo.config.commands import end, read_command
from minimind_dpo.options.limits import COUNT, NOT_NEGATIVE, Range

_READS: Final = ("reference.path", "reference.dtype")


@dataclass
class ChatKeys:
    """The command's own keys; `conf/commands/chat.yaml` says what each means."""

    run: str | None = None
    system: str | None = None
    temperature: Annotated[float, NOT_NEGATIVE] = 0.7
    top_p: Annotated[float, Range(0, 1, open_low=True)] = 0.9
    max_new_tokens: Annotated[int, COUNT] = 512


def main() -> None:
    """Entry point."""
    end(run)


def run(arguments: Sequence[str]) -> None:
    """Talk until there is nothing more to read.

    Raises:
        ConfigError, CheckpointError: What is wrong with the command line, or with the model.
    """
    command = read_command(arguments, "chat", ChatKeys, _READS, __doc__ or "")
    own = command.own
    config, folder = command.opened(own.run)
    # Only now: torch and transformers take seconds to import, a typo should not.
    from minimind_dpo.evaluation.conversation import Sampling
    from minimind_dpo.run.process import prepare_process
    from minimind_dpo.run.talk import talk

    prepare_process(config, sys.stderr)
    sampling = Sampling(own.temperature, own.top_p, own.max_new_tokens, config.seed)
    talk(config, folder, own.system, sampling)


if __name__ == "__main__":
    main()
