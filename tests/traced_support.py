"""Programs of `tests/cuda` that trace a CUDA device which is not there, run as processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

needs_absent_device = pytest.mark.skipif(
    not shutil.which("g++") or torch.version.cuda is not None or torch.version.hip is not None,
    reason="the absent device is compiled by g++, for a build of torch that has no CUDA of its own",
)


def traced(name: str, *requests: Any) -> Any:
    """What a program says on its last line; the guard has to be loaded before torch is."""
    script = Path(__file__).with_name("cuda") / name
    command = [sys.executable, "-W", "ignore", str(script), *map(json.dumps, requests)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])
