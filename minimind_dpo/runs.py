"""A run's folder and what is written into it beside checkpoints and curves."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from minimind_dpo import __version__
from minimind_dpo.config import to_yaml
from minimind_dpo.schema import Config

RUN_DIR_VARIABLE = "MINIMIND_DPO_RUN_DIR"
"""Tells the ranks that the first one launches which folder it has made."""


def make_run_dir(config: Config) -> Path:
    """The run's folder: made here on the first rank, handed down to those it launches.

    Two runs that start in the same second get two folders.
    """
    inherited = os.environ.get(RUN_DIR_VARIABLE)
    if inherited:
        return Path(inherited)
    folder = Path(config.run_dir) if config.run_dir else _new_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ[RUN_DIR_VARIABLE] = str(folder.resolve())
    return folder


def _new_folder(config: Config) -> Path:
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    base = Path(config.output_dir) / "train" / f"{now}_{config.name}"
    base.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        folder = base if attempt == 1 else base.with_name(f"{base.name}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{base} and a thousand names after it are taken")


def write_config(config: Config, folder: Path) -> None:
    """Keep the resolved configuration beside the run."""
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def flat(config: Config) -> dict[str, Any]:
    """The configuration as one level of dotted keys and plain values."""

    def walk(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            plain = value if isinstance(value, int | float | str | bool) else str(value)
            return {prefix: plain}
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= walk(item, f"{prefix}.{key}" if prefix else str(key))
        return found

    return walk(asdict(config), "")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON under a temporary name and rename it, so that readers never see half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    names = ("torch", "lightning", "transformers", "hydra-core", "omegaconf", "numpy")
    found = {name: metadata.version(name) for name in names}
    return {"minimind_dpo": __version__, "python": platform.python_version(), **found}


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = time.process_time()

    @property
    def wall(self) -> float:
        """Seconds."""
        return time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """CPU seconds over all threads."""
        return time.process_time() - self._cpu
