"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors are fastest on one thread, and two test workers share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that chooses what multiplies matrices chooses for itself alone."""
    monkeypatch.setattr("minimind_dpo.kernels.cpu_matmul._chosen", "torch")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with numbers from the original programs; not part of this project."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MINIMIND_DPO_SHARED", default))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs the reference numbers of the original programs, not found in {folder}")
    return folder
