"""Fixtures that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from golden_support import Golden
from program import Driver
from published import TOKENIZERS

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
