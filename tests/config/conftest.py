"""Inputs that exist, so that only what a test gets wrong is reported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from composed import composed

from minimind_dpo.config.check import Machine, validate
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides that name a model, a tokenizer and data, in the folder that tests run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full_sft_512.pth").write_bytes(b"weights")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "dpo.jsonl").write_text("{}\n")
    (tmp_path / "val.jsonl").write_text("{}\n")
    return ["model.path=full_sft_512.pth", "model.tokenizer=tokenizer", "data.train=dpo.jsonl"]


Problems = Callable[..., dict[str, str]]


@pytest.fixture
def problems() -> Problems:
    """What is said of a configuration or of overrides, by key; on a machine without a GPU."""

    def found(
        config: Config | Sequence[str], cuda: int = 0, world_size: int | None = None
    ) -> dict[str, str]:
        config = config if isinstance(config, Config) else composed(config)
        try:
            validate(config, machine=Machine(cuda=cuda, mps=False), world_size=world_size)
        except ConfigError as error:
            return {problem.key: str(problem) for problem in error.problems}
        return {}

    return found
