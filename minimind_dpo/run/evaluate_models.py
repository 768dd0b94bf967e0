"""`evaluate`: the verdict on finished runs, or on any model against another, anew."""

from __future__ import annotations

import datetime
import logging
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from minimind_dpo.config.schema import Config
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.evaluation.compare import Comparison, comparison_table
from minimind_dpo.evaluation.evaluate import Evaluation
from minimind_dpo.evaluation.judges.votes import BallotBox
from minimind_dpo.evaluation.text import Text
from minimind_dpo.evaluation.verdict import Verdict
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.build import build_datamodule
from minimind_dpo.run.evaluation import build_evaluation, lending
from minimind_dpo.run.folder import write_json
from minimind_dpo.run.identity import policy_digest
from minimind_dpo.run.policy import device_of, load_policy
from minimind_dpo.run.verdict import VERDICT, keep_verdict, make_verdict
from minimind_dpo.training.shown_progress import progress

log = logging.getLogger(__name__)
console = Console()


def evaluate_models(
    configs: Sequence[Config], runs: Sequence[Path | None], to: str | None
) -> list[Verdict]:
    """Judge each policy against the reference of the first, on its held-out prompts.

    Args:
        configs: Of each run; or one, of `model.path` and `reference.path`.
        runs: Their folders; None for `model.path`.
        to: Folder for what is written.

    Returns:
        The verdicts, in that order.

    Raises:
        ConfigError, CheckpointError, DataError: What is wrong, before anything is judged.
    """
    config, run = configs[0], runs[0]
    folder = _folder(config, to)
    policy, chat = load_policy(config, run, device_of(config))
    folder.mkdir(parents=True, exist_ok=True)
    # What people are to vote on lies with the run, or in a folder that the next command names.
    to_it = "" if run else f" {shlex.quote(f'to={folder}')}"
    again = Text(f"the same command with{to_it}", f"同样的命令加上{to_it}")
    box = BallotBox(run or folder, partial(policy_digest, config, run), again)
    evaluation = _evaluation(config, policy, chat, box)
    for other, path in zip(configs[1:], runs[1:], strict=True):
        _check_ground(config, other, path)
    names, verdicts = _names(config, runs), list[Verdict]()
    for name, each, path in zip(names, configs, runs, strict=True):
        if verdicts:
            policy = _further(config, each, path, chat)
            console.rule(name)
        verdicts.append(make_verdict(evaluation, lending(policy.model), config.judge.name))
        facts = {"policy": str(path or config.model.path)}
        keep_verdict(verdicts[-1], folder if len(names) == 1 else folder / name, facts)
    if len(names) > 1:
        _compare(names, verdicts, folder)
    for advice in dict.fromkeys(each for verdict in verdicts for each in verdict.advice):
        log.info(advice)
    log.info(f"Written: {folder}")
    return verdicts


def _evaluation(config: Config, policy: LoadedModel, chat: Chat, box: BallotBox) -> Evaluation:
    data = build_datamodule(config, chat.tokenizer)
    data.prepare_data()
    data.setup("fit")
    assert data.train_store is not None
    stores = (data.train_store, data.val_store or data.train_store)
    evaluation = build_evaluation(config, policy, data, stores, progress, box)
    if evaluation is None:
        why = "and data.val_fraction hold out no prompt to ask"
        raise ConfigError([Problem("data.val", why, "Give data.val=FILE.", config.data.val)])
    return evaluation


def _further(config: Config, other: Config, run: Path | None, chat: Chat) -> LoadedModel:
    """The policy of a further run, which has to read the first one's tokens as its own.

    Raises:
        ConfigError: Its tokenizer is another one.
    """
    policy, own_chat = load_policy(other, run, device_of(config))
    if own_chat.tokenizer.get_vocab() != chat.tokenizer.get_vocab():
        why = "has another tokenizer than the first run, so their answers share no tokens"
        raise ConfigError([Problem("against", why, "Judge each by itself: run=RUN.", str(run))])
    return policy


def _check_ground(config: Config, other: Config, run: Path | None) -> None:
    """Say where the comparison is not one of like with like."""

    def ground(each: Config) -> tuple[object, ...]:
        data = each.data
        return data.train, data.val, data.val_fraction, each.seed

    if ground(other) != ground(config):
        log.warning(
            f"{run} was trained on other data, or on another split of it, than the first run: it "
            "may have been trained on the prompts that are asked here"
        )
    starts = [each.reference.path or each.model.path for each in (config, other)]
    if starts[0] != starts[1]:
        log.warning(f"{run} had another reference, {starts[1]}; here it is held to {starts[0]}")


def _compare(names: Sequence[str], verdicts: Sequence[Verdict], folder: Path) -> None:
    comparisons = [
        Comparison.of(name, verdict, names[0], verdicts[0])
        for name, verdict in zip(names[1:], verdicts[1:], strict=True)
    ]
    console.print(comparison_table(names[0], verdicts[0], comparisons))
    for comparison in comparisons:
        log.info(comparison.sentence)
    content = {"comparisons": [comparison.to_json() for comparison in comparisons]}
    write_json(content, folder / "comparison.json")


def _folder(config: Config, to: str | None) -> Path:
    """Where verdicts go; a run's own folder keeps the verdict of its end.

    Raises:
        ConfigError: It is the folder of a run.
    """
    if to is None:
        now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        return Path(config.output_dir).expanduser() / "evaluate" / f"{now}_{config.name}"
    folder = Path(to).expanduser()
    if (folder / "config.yaml").exists() and (folder / VERDICT).exists():
        why = "is the folder of a run, whose own verdict this would replace"
        raise ConfigError([Problem("to", why, "Name another folder.", to)])
    return folder


def _names(config: Config, runs: Sequence[Path | None]) -> list[str]:
    """Folder names, those of a sweep's jobs with the sweep's; numbered where they are the same."""
    names = [
        f"{run.parent.name}_{run.name}" if run.name.isdigit() else run.name
        for run in (Path(each or config.model.path).resolve() for each in runs)
    ]
    return [
        name if names.count(name) == 1 else f"{place + 1}_{name}"
        for place, name in enumerate(names)
    ]
