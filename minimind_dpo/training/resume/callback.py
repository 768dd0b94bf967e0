"""Which training states are kept: the newest ones, to resume from, and the best by a metric.

Resume states are saved at one point only, the end of a micro-batch that ends an optimizer step,
where no gradient is half accumulated. If a validation is due there it comes after the save and is
run again by a run that resumes from it, so that neither a step nor a point of a curve is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from minimind_dpo.disk import remove_dead
from minimind_dpo.training.lightning_seams import (
    complete_micro_batch,
    ends_step,
    keep_signals_from,
    training_ends,
    validation_follows,
)
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.optim import misshapen_moment
from minimind_dpo.training.options import CheckpointOptions
from minimind_dpo.training.resume.best import BestCheckpoint
from minimind_dpo.training.resume.checkpoint_io import (
    HEADER,
    DamagedCheckpointError,
    set_aside_newer,
    step_file,
    step_files,
    writer_of,
)
from minimind_dpo.training.resume.curves import flush_curves, rows_logged
from minimind_dpo.training.resume.position import (
    EndOfStep,
    epochs_done,
    fit_to_shape,
    step_shape,
    use_new_learning_rate,
)
from minimind_dpo.training.signals import Stopped, StopRequest

KEPT: Final = 2
"""Resume states kept: the newest, and the one before it for when that is damaged."""


def make_checkpoints(
    options: CheckpointOptions,
    folder: Path,
    *,
    belongs: dict[str, Any] | None = None,
    stop: StopRequest | None = None,
    accept_changes: bool = False,
) -> list[Callback]:
    """The checkpoint callbacks of one run folder.

    Args:
        options: When to save and what to keep.
        folder: `<run>/checkpoints`.
        belongs: What the states belong to; kept in each of them.
        stop: Set by signal handlers.
        accept_changes: `resume_with_changes`.
    """
    callbacks: list[Callback] = []
    if options.save_top_k:
        callbacks.append(
            BestCheckpoint(
                dirpath=folder,
                filename="best-{step}",
                monitor=options.monitor,
                mode=options.mode,
                save_top_k=options.save_top_k,
                save_on_train_epoch_end=False,
                enable_version_counter=False,
            )
        )
    every = options.every_n_steps if options.save_last else None
    newest = ResumeCheckpoint(
        folder, every, belongs=belongs, stop=stop, accept_changes=accept_changes
    )
    return [*callbacks, newest]


class ResumeCheckpoint(Checkpoint):
    """Saves the newest states, stops at a signal, and makes a resumed run go on exactly.

    Args:
        folder: Where to save.
        every_n_steps: Optimizer steps between saves beside those before each validation and at
            the end; 0 for these alone; None to save at a signal only.
        keep: How many of the newest states stay.
        belongs: What the states belong to; kept in each of them.
        stop: Set by signal handlers.
        accept_changes: Resume where a step is spread so that no position is exact, too.

    Attributes:
        start_metrics: Validation before training, kept for the summary of a resumed run.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int | None = 0,
        *,
        keep: int = KEPT,
        belongs: dict[str, Any] | None = None,
        stop: StopRequest | None = None,
        accept_changes: bool = False,
    ) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.belongs = belongs or {}
        self.stop = stop or StopRequest()
        self.accept_changes = accept_changes
        self.start_metrics: dict[str, float] = {}
        self._saved_step = -1
        self._validates = self._validation_due = False  # after this step; and is not done yet
        self._saving = False
        self._end_of_step: EndOfStep | None = None
        self._answer: Callable[[], Stopped | None] | None = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen to signals instead of Lightning, in a validation of its own as well."""
        self.stop.install()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clean up behind a run that died, and listen to signals instead of Lightning.

        Raises:
            DamagedCheckpointError: The optimizer has been given what does not fit its weights.
        """
        if entry := "".join(map(misshapen_moment, trainer.optimizers)):
            raise DamagedCheckpointError(f"{trainer.ckpt_path} was altered: {entry} does not fit")
        step = trainer.global_step
        self._saved_step = self.stop.step = step
        if trainer.is_global_zero and self.folder.is_dir():
            remove_dead(self.folder)
            set_aside_newer(self.folder, step)
        use_new_learning_rate(trainer, pl_module)
        self.stop.waits_for = "this micro-batch" if trainer.world_size == 1 else "a step"
        # NOTE: Lightning has just installed handlers that talk to other ranks; that hangs.
        self.stop.install()
        keep_signals_from(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A stop does not wait for the rest of a step; several ranks ask before its last part.

        Raises:
            Stopped: Once the end of the last step is saved.
        """
        if trainer.world_size == 1:
            self._stop_if_asked(trainer)
        elif ends_step(trainer):
            self._answer = self.stop.ask(trainer)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """At the end of a step, save where it is due; save and end where a stop was asked for.

        Raises:
            Stopped: On all ranks, once the state is saved.
            CheckpointSaveError: A state could not be written while training went on.
        """
        if not ends_step(trainer):
            return
        self.stop.step = trainer.global_step
        writer_of(trainer).raise_failure()
        self._validates = self._validation_due = validation_follows(trainer)
        stopped = (self._answer or self.stop.ask(trainer))()
        exhausted = isinstance(pl_module, DPOModule) and pl_module.guard.exhausted
        if stopped or exhausted or self._is_due(trainer):
            self.save(trainer)
        if stopped:
            raise stopped
        self._end_of_step = EndOfStep(trainer)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A validation is not worth waiting for: the state before it is saved, and it runs again.

        Raises:
            Stopped: On all ranks.
        """
        if trainer.state.fn == "fit":
            self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A state that is saved after a validation does not ask for it again."""
        if trainer.state.fn == "fit":
            self._validation_due = False

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nobody looks at the flag any more.

        Raises:
            Stopped: It was set after the last step.
        """
        self._stop_no_more(trainer)
        self._stop_if_asked(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Nobody looks at the flag any more."""
        self._stop_no_more(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what the state belongs to, and say where in its loops the run stands."""
        checkpoint[HEADER] = {
            "belongs": self.belongs,
            "shape": step_shape(trainer),
            "step": trainer.global_step,
            "epochs": epochs_done(trainer),
            "rows": rows_logged(trainer),
            "start_metrics": self.start_metrics,
        }
        if self._saving:
            loops = checkpoint["loops"]["fit_loop"]
            complete_micro_batch(loops, self._validates, self._validation_due)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Translate positions where a step is now spread in another way.

        Raises:
            ResumeMismatchError: None of its ends is the state's, and `accept_changes` is off.
        """
        kept = checkpoint[HEADER]
        self.start_metrics = dict(kept["start_metrics"])
        loops, now = checkpoint["loops"]["fit_loop"], step_shape(trainer)
        fit_to_shape(loops, kept["shape"], now, any_place=self.accept_changes)

    def save(self, trainer: L.Trainer) -> None:
        """Save this step's state, then drop the oldest; to be called on all ranks."""
        step = trainer.global_step
        if step == self._saved_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        flush_curves(trainer)
        self._saving = True
        try:
            trainer.save_checkpoint(step_file(self.folder, step))
        finally:
            self._saving = False
        self._saved_step = step

        def is_proved() -> None:
            self.stop.note_saved(step_file(self.folder, step), step)
            if trainer.is_global_zero:
                # Only now: until the new one is proved, the older ones are all there is.
                for path in step_files(self.folder)[self.keep :]:
                    path.unlink(missing_ok=True)

        writer_of(trainer).then(is_proved)

    def _stop_if_asked(self, trainer: L.Trainer) -> None:
        """After a step has ended and before the next one has, save that end and stop."""
        if stopped := self.stop.ask(trainer)():
            if self._end_of_step is not None and self._saved_step != trainer.global_step:
                self._end_of_step.put_back(trainer)
                self.save(trainer)
            raise stopped

    def _stop_no_more(self, trainer: L.Trainer) -> None:
        """Let signals raise `Stopped` themselves, once no thread is writing a state any more."""
        writer_of(trainer).settle()
        self.stop.waits_for = ""

    def _is_due(self, trainer: L.Trainer) -> bool:
        if self.every_n_steps is None:
            return False
        regular = self.every_n_steps > 0 and trainer.global_step % self.every_n_steps == 0
        ends = trainer.should_stop or training_ends(trainer)
        return regular or ends or self._validation_due
