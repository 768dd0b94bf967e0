"""Judge answers again: `python -m minimind_dpo.evaluate run=RUN evaluate.prompts=200 judge=rules`.

Or two runs, `run=A against=B`; or any two models, `model.path=A reference.path=B data.val=FILE`.
Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from minimind_dpo.config.commands import CHAT_KEYS, end, read_command, run_folder
from minimind_dpo.config.schema import Config
from minimind_dpo.options.limits import Form, as_list, is_word
from minimind_dpo.options.problem import ConfigError, Problem

_RUNS: Final = Form(
    lambda value: all(map(is_word, as_list(value))), "the folder of a run, or several"
)
_KEYS: Final = ("model", "data", "reference", "evaluate", "judge", *CHAT_KEYS)


@dataclass
class EvaluateKeys:
    """The command's own keys; `conf/commands/evaluate.yaml` says what each means."""

    run: Annotated[Any, _RUNS] = None
    against: Annotated[Any, _RUNS] = None
    to: str | None = None


def main() -> None:
    """Entry point."""
    end(run)


def run(arguments: Sequence[str]) -> None:
    """Do what a command line says.

    Raises:
        ConfigError, CheckpointError, DataError: What is wrong with it, with models or data.
    """
    command = read_command(arguments, "evaluate", EvaluateKeys, __doc__ or "")
    own = command.own
    runs = [run_folder(each) for each in as_list(own.run)]
    if own.against is not None and not runs:
        why = "is compared with a run, and none is named"
        raise ConfigError([Problem("against", why, "Give run=RUN as well.", own.against)])
    runs += [run_folder(each, "against") for each in as_list(own.against)]
    config = command.config(runs[0] if runs else None)
    if not runs:
        _complete(config)
    if not config.evaluate.prompts:
        why, fix = "leaves nothing to ask", "For example: evaluate.prompts=64"
        raise ConfigError([Problem("evaluate.prompts", why, fix, config.evaluate.prompts)])
    # Only now: torch and transformers take seconds to import, a typo should not.
    from minimind_dpo.config.check import validate
    from minimind_dpo.run.evaluate_models import evaluate_models
    from minimind_dpo.run.process import prepare_process

    validate(config, only=_KEYS)
    prepare_process(config)
    evaluate_models(config, runs, own.to, [command.config(each) for each in runs[1:]])


def _complete(config: Config) -> None:
    """Two models without a run: what they are compared on, and what the judge is fitted on.

    Raises:
        ConfigError: No second model, or no pairs.
    """
    data, problems = config.data, []
    if config.reference.path is None:
        why = "is missing: it names what model.path is compared with"
        problems.append(Problem("reference.path", why, "For example: reference.path=full_sft.pth"))
    if not data.val and not data.train:
        why = "is missing: it names the pairs whose prompts are asked"
        problems.append(Problem("data.val", why, "For example: data.val=dpo.jsonl"))
    if problems:
        raise ConfigError(problems)
    if not data.train:
        # Half of the prompts is asked, and the judge `pairs` is fitted on those of the other half.
        data.train, data.val, data.val_fraction = data.val, [], 0.5


if __name__ == "__main__":
    main()
