"""Judge answers again: `python -m minimind_dpo.evaluate run=RUN evaluate.prompts=200 judge=rules`.

Or two runs, `run=A against=B`; or any two models, `model.path=A reference.path=B data.val=FILE`.
Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from minimind_dpo.config.commands import check, end, read_command, run_folder
from minimind_dpo.config.schema import Config
from minimind_dpo.evaluation.options import VOTED
from minimind_dpo.options.limits import Form, as_list, is_word
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.output import keep_output

_RUNS: Final = Form(
    lambda value: all(map(is_word, as_list(value))), "the folder of a run, or several"
)
_READS: Final = (
    *("name", "output_dir", "judge"),
    *("reference.path", "reference.dtype", "reference.batch_tokens"),
    *("evaluate.prompts", "evaluate.text", "evaluate.batch_size", "evaluate.max_new_tokens"),
    *("evaluate.temperature", "evaluate.seed"),
    *("data.train", "data.val", "data.columns", "data.val_fraction", "data.layout"),
    *("data.pad_to_max_length", "data.max_length", "data.max_prompt_length"),
    *("data.max_completion_length", "data.on_error", "data.cache_dir", "data.tokenize_workers"),
)


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
    command = read_command(arguments, "evaluate", EvaluateKeys, _READS, __doc__ or "")
    keep_output()
    own = command.own
    runs: list[Path | None] = [run_folder(each) for each in as_list(own.run)]
    if own.against is not None and not runs:
        why = "is compared with a run, and none is named"
        raise ConfigError([Problem("against", why, "Give run=RUN as well.", own.against)])
    runs += [run_folder(each, "against") for each in as_list(own.against)]
    places = runs or [None]
    configs = [command.config(each) for each in places]
    config = configs[0]
    if not runs:
        _complete(config)
    begun = ("model.path",) if config.reference.path is None else ()  # it is the reference
    check(config, only=(*command.keys(places[0]), *begun))
    _check_question(config, runs)
    # Only now: torch and transformers take seconds to import, a typo should not.
    from minimind_dpo.run.evaluate_models import evaluate_models
    from minimind_dpo.run.process import prepare_process

    prepare_process(config)
    evaluate_models(configs, places, own.to)


def _check_question(config: Config, runs: Sequence[Path | None]) -> None:
    """Refuse what asks nothing, and votes on the answers of several runs, which have one page.

    Raises:
        ConfigError: One of these.
    """
    if not config.evaluate.prompts:
        why, fix = "leaves nothing to ask", "For example: evaluate.prompts=64"
        raise ConfigError([Problem("evaluate.prompts", why, fix, config.evaluate.prompts)])
    voted = [name for name in VOTED if name in config.judge.names]
    if voted and len(runs) > 1:
        key = "judge.name" if config.judge.name in VOTED else "judge.also"
        why = f"is voted on for one run at a time, and {len(runs)} are named"
        fix = "Give each run a command and votes of its own: run=RUN."
        raise ConfigError([Problem(key, why, fix, voted[0])])


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
        data.train, data.val = data.val, []
        data.val_fraction = 0.5 if data.val_fraction is None else data.val_fraction


if __name__ == "__main__":
    main()
