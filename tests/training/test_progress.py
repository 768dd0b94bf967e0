"""Lines of progress: the epoch is the one that a step belongs to."""

from __future__ import annotations

import re

import pytest
from training_support import loader, made_up_pairs, quiet_trainer, tiny_model

from minimind_dpo.training.callbacks import progress
from minimind_dpo.training.callbacks.progress import PlainLines, RichBar, make_progress
from minimind_dpo.training.module import DPOModule


@pytest.mark.parametrize("max_steps", [-1, 5])
def test_the_last_step_of_an_epoch_is_of_that_epoch(
    max_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # 12 pairs, 2 x 2 a step: 3 steps an epoch.
    trainer = quiet_trainer(
        max_epochs=2,
        max_steps=max_steps,
        accumulate_grad_batches=2,
        callbacks=[PlainLines()],
        enable_progress_bar=True,
    )
    trainer.fit(DPOModule(tiny_model(0), tiny_model(1)), loader(made_up_pairs(12), 2, 2))
    lines = re.findall(r"epoch (\d+)  step (\d+)/", capsys.readouterr().out)
    steps = 6 if max_steps == -1 else max_steps
    expected = [("1", "1"), ("1", "2"), ("1", "3"), ("2", "4"), ("2", "5"), ("2", "6")]
    assert lines == expected[:steps]


def test_a_terminal_that_cannot_print_a_bar_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(progress.sys, "stdout", Terminal())
    assert isinstance(make_progress("auto"), RichBar)
    Terminal.encoding = "gbk"
    assert isinstance(make_progress("auto"), PlainLines)
