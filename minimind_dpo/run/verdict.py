"""The verdict of a run: at its end, every few steps where that is asked, or by `evaluate` anew.

<run>/verdict.json      the verdict on the exported weights
<run>/answers.jsonl     each prompt with both answers
<run>/vote.html         for the judge human, and to_judge.jsonl for the judge file: what is asked;
                        beside it voted_on.jsonl, the answers with who wrote them
<run>/frontier.jsonl    a line for each verdict while training and the last: step, win rate, KL
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from minimind_dpo import os_errors
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.disk import read_lines, write_lines
from minimind_dpo.evaluation.answers import Lend
from minimind_dpo.evaluation.evaluate import Evaluation
from minimind_dpo.evaluation.judges.votes import BallotBox
from minimind_dpo.evaluation.table import table
from minimind_dpo.evaluation.verdict import Verdict
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.run.evaluation import build_evaluation, lending
from minimind_dpo.run.folder import write_json
from minimind_dpo.run.identity import policy_digest
from minimind_dpo.training.shown_progress import progress
from minimind_dpo.training.signals import GivenUpError, StopRequest

log = logging.getLogger(__name__)
console = Console()

VERDICT: Final = "verdict.json"
ANSWERS: Final = "answers.jsonl"
FRONTIER: Final = "frontier.jsonl"
COMPARED: Final = ("verdict/win_rate", "verdict/length_controlled", "verdict/kl")
"""Curves by which runs are compared."""


def make_verdict(evaluation: Evaluation, policy: Lend, judge: str, leave_out: str = "") -> Verdict:
    """The verdict on a policy, after saying how long it may take.

    Args:
        evaluation: What compares it.
        policy: The policy.
        judge: Name of the judge.
        leave_out: How to do without, for people.
    """
    by = "" if judge == "none" else f" by judge {judge}"
    log.info(
        f"Verdict on {len(evaluation.task.prompts)} held-out prompts{by}: at most about "
        f"{_duration(evaluation.seconds_ahead(policy))}{leave_out}"
    )
    return evaluation(policy)


def keep_verdict(verdict: Verdict, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Write `answers.jsonl` and `verdict.json`, and show the table.

    Args:
        verdict: The verdict.
        folder: Where; made if missing.
        facts: What else `verdict.json` begins with.

    Returns:
        The content of `verdict.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / ANSWERS, (case.to_json() for case in verdict.cases))
    content = {**facts, **verdict.to_json()}
    write_json(content, folder / VERDICT)
    console.print(table(content))
    log.info(verdict.sentence)
    for alarm in verdict.alarms:
        log.warning(alarm)
    return content


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class RunVerdict(Callback):
    """Compares the policy with its reference, on the first rank.

    Args:
        config: Of the run.
        policy: What is trained.
        data: The data.
        folder: The run's folder.
        stop: What signal handlers set.
    """

    def __init__(
        self,
        config: Config,
        policy: LoadedModel,
        data: PreferenceDataModule,
        folder: Path,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.policy = policy
        self.data = data
        self.folder = folder
        self.stop = stop
        assert data.train_store is not None
        # NOTE: without the reference's log-probs, which pairs that training does not visit lack.
        self._stores = (data.train_store, data.val_store or data.train_store)
        self._evaluation: Evaluation | None = None
        self._newest = 0
        self.advice: tuple[str, ...] = ()
        """What is left to do for the judges, once the verdict is there."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse what cannot be judged before anything is trained."""
        if not trainer.is_global_zero or not self.config.evaluate.prompts:
            return
        (self.folder / VERDICT).unlink(missing_ok=True)  # of the time before it was taken further
        box = BallotBox(self.folder, lambda: policy_digest(self.config, self.folder, self._newest))
        self._evaluation = build_evaluation(
            self.config, self.policy, self.data, self._stores, self._bar, box
        )
        if self._evaluation is None:
            log.info("There will be no verdict: data.val and data.val_fraction hold out no prompt")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A point of the frontier every `evaluate.every` optimizer steps."""
        step, every = trainer.global_step, self.config.evaluate.every
        if self._evaluation is None or every is None or step in (0, self._newest) or step % every:
            return
        self._newest = step
        try:
            with self.stop.giving_up(self.policy.model):
                verdict = self._evaluation(lending(self.policy.model))
        except GivenUpError:
            return
        except Exception as error:  # a policy that has diverged cannot be sampled from
            log.warning(f"There is no verdict at step {step}: {' '.join(str(error).split())}")
            return
        self._add_point(step, verdict, trainer.loggers)

    def conclude(self, step: int, loggers: Iterable[Logger] = ()) -> dict[str, Any] | None:
        """The verdict on the weights as they are now, shown and written.

        Args:
            step: Optimizer steps after which the weights were these.
            loggers: Those of the run's curves.

        Returns:
            The content of `verdict.json`; None without a verdict. A judge that fails is told, but
            does not fail the run, whose weights are still to be exported.
        """
        if self._evaluation is None:
            return None
        try:
            return self._conclude(self._evaluation, step, loggers)
        except Exception as error:
            if os_errors.explain(error) is not None:
                raise  # a full disk, which the export would meet as well
            why = " ".join(str(error).split()) or type(error).__name__
            log.error(f"There is no verdict: {why}", exc_info=error)
            return None

    def _conclude(
        self, evaluation: Evaluation, step: int, loggers: Iterable[Logger]
    ) -> dict[str, Any]:
        self._newest = step
        verdict = make_verdict(
            evaluation,
            lending(self.policy.model),
            self.config.judge.name,
            " (evaluate=none leaves it out)",
        )
        self._add_point(step, verdict, loggers)
        self.advice = verdict.advice
        return keep_verdict(verdict, self.folder, {"step": step})

    def _add_point(self, step: int, verdict: Verdict, loggers: Iterable[Logger]) -> None:
        """Write a point of the frontier in place of later ones, which an earlier launch left."""
        path = self.folder / FRONTIER
        before = read_lines(path) if path.is_file() else []
        earlier = [point for point in before if point["step"] < step]
        point = {"step": step, **verdict.numbers()}
        write_lines(path, [*earlier, point])
        numbers = {f"verdict/{k}": v for k, v in verdict.numbers().items() if v is not None}
        for logger in loggers:
            logger.log_metrics(numbers, step)

    @contextmanager
    def _bar(self, title: str, total: int, noun: str) -> Iterator[Callable[[int], None]]:
        """A progress bar, whose every step is a chance to give up where a stop is waiting."""
        with progress(title, total, noun) as advance:

            def advance_or_stop(count: int) -> None:
                if self.stop.signum:
                    raise GivenUpError
                advance(count)

            yield advance_or_stop
