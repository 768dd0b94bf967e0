"""States and reference log-probs leave the device without a wait, traced without a device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the device guard needs g++")


def test_what_is_copied_to_the_host_is_waited_for_only_when_it_is_read() -> None:
    script = Path(__file__).with_name("traced_copies.py")
    command = [sys.executable, "-W", "ignore", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (copied, waited, model), (scored,) = json.loads(ended.stdout.splitlines()[-1])
    # Of each weight itself, two moments and its step; the head is the embedding, once.
    assert copied == {"waits": [], "downloads": 4 * model["parameters"]}
    assert [wait.split(" at ")[0] for wait in waited["waits"]] == ["event"]
    assert scored == {"waits": [], "downloads": 2}
