"""What a logger's class does not take is told by its key, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind_dpo.config.compose import compose
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.folder import Run
from minimind_dpo.run.loggers import build_loggers


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (
            ["logger=csv", "+logger.options.a=1"],
            "csv does not take it (CSVLogger.__init__() got an",
        ),
        (["logger=csv", "+logger.options.name=x"], "csv does not take it"),
        (["logger=csv", "logger.options.flush_logs_every_n_steps=0"], "a number above 0, not 0"),
        (["logger=csv", "logger.options.flush_logs_every_n_steps=abc"], "above 0, not 'abc'"),
        (["logger=tensorboard", "+logger.options.a=1"], "tensorboard does not take it"),
        (["logger=tensorboard", "+logger.options.save_dir=1"], "tensorboard does not take it"),
        (["logger=tensorboard", "logger.options.max_queue=abc"], "tensorboard does not take it"),
    ],
)
def test_options_that_a_logger_does_not_take_are_refused(
    overrides: list[str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_loggers(compose(overrides), Run(tmp_path), [], first=True)
    assert "  logger.options: " in str(caught.value)
    assert why in str(caught.value)
