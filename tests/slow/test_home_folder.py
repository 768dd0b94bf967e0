"""A run writes nothing into the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_a_run_leaves_the_home_folder_as_it_was(tmp_path: Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    short = ["trainer.max_steps=1", "trainer.limit_val_batches=1", "callbacks.judge=none"]
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    subprocess.run(
        [sys.executable, "-m", "minimind_dpo.train", *short, "callbacks.samples.enabled=false"],
        cwd=work,
        env=environment | {"HOME": str(home)},
        check=True,
    )
    assert list(home.rglob("*")) == []
    assert [path.name for path in work.iterdir()] == ["outputs"]
