"""The embedded demo to its end: what its verdict says, and how long the whole takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_s_improvement_is_found_with_64_prompts_and_both_judges_agree(
    tmp_path: Path,
) -> None:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "minimind_dpo.train", "run_dir=run"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    assert time.perf_counter() - start < 90
    verdict = json.loads((tmp_path / "run" / "summary.json").read_text())["verdict"]
    assert verdict["decision"] == "better"
    assert verdict["prompts"] == 64
    assert verdict["judge"]["accuracy"]["low"] > 0.9
    win_rate, by_program = (verdict[who]["win_rate"] for who in ("judge", "also"))
    assert win_rate["low"] <= by_program["value"] <= win_rate["high"]
    assert verdict["also"]["agreement"]["low"] > 0.85
    assert verdict["judge"]["length_controlled"]["low"] > 0.5
    assert 0.5 < verdict["costs"]["kl"]["value"] < 1.5
    assert verdict["alarms"] == []
