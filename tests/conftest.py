"""Fixtures that several folders share."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from golden_support import Golden
from program import Driver
from published import TOKENIZERS

from minimind_dpo.demo import HELD_OUT, PREFERENCES

# Of texts and tokenizers that are not part of the project.
collect_ignore = [] if TOKENIZERS else ["data/test_published_tokenizers.py"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors are fastest on one thread, and two test workers share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that chooses what multiplies matrices chooses for itself alone."""
    monkeypatch.setattr("minimind_dpo.kernels.cpu_matmul._chosen", "torch")


@pytest.fixture(autouse=True)
def _own_messages() -> Iterator[None]:
    """A test that runs a command in this process leaves the next one's messages alone."""
    loggers = [logging.getLogger(name) for name in ("", "minimind_dpo", "lightning.pytorch")]
    before = [(each, list(each.handlers), each.level) for each in loggers]
    yield
    for each, handlers, level in before:
        each.handlers[:] = [handler for handler in each.handlers if handler in handlers]
        each.setLevel(level)


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Golden]:
    """The tiny model of a generation, and the numbers that its original program gave for it."""
    folder = tmp_path_factory.mktemp("golden")
    return lambda name: Golden(name, folder)


@pytest.fixture(scope="session")
def driver() -> Iterator[Driver]:
    """Runs the program in forked processes."""
    made = Driver()
    yield made
    made.close()


@pytest.fixture(scope="session")
def finished_run(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the embedded demo on 64 pairs, 2 steps; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    for name, source, count in (("train", PREFERENCES, 64), ("val", HELD_OUT, 24)):
        lines = Path(source).read_text(encoding="utf-8").splitlines()[:count]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "run_dir": folder / "run",
        "data.cache_dir": folder / "cache",
        "data.train": folder / "train.jsonl",
        "data.val": folder / "val.jsonl",
        "trainer.max_steps": 2,
        "trainer.log_every_n_steps": 1,
        "evaluate.prompts": 8,
        "evaluate.max_new_tokens": 12,
        "callbacks.judge": "none",
        "callbacks.samples.max_new_tokens": 12,
        "callbacks.checkpoint.save_last": "false",
        "callbacks.checkpoint.save_top_k": 0,
        "logger": "csv",
    }
    overrides = ["experiment=demo", *(f"{key}={value}" for key, value in settings.items())]
    result = driver.run(folder, folder, overrides, {})
    assert result.returncode == 0, json.dumps(result.stdout + result.stderr)
    return folder / "run"
