"""The wheel has all that a run needs, wherever it is installed and started."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, *command: str, **more: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "", **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "-q",
        "-w",
        str(folder),
        str(ROOT),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("building a wheel needs hatchling from a package index")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("minimind_dpo-*.whl"))


def test_the_wheel_holds_configuration_and_demo_but_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {f"minimind_dpo/conf/{p.relative_to(ROOT / 'conf')}" for p in conf_files()}
    assert inside <= names
    assert {name.split("/")[0] for name in names if not name.split("/")[0].endswith("info")} == {
        "minimind_dpo"
    }
    assets = [p for p in (ROOT / "minimind_dpo" / "demo" / "assets").rglob("*") if p.is_file()]
    assert {str(path.relative_to(ROOT)) for path in assets} <= names


def conf_files() -> list[Path]:
    return list((ROOT / "conf").rglob("*.yaml"))


def test_module_and_console_script_run_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", str(venv))
    folders = {"base": str(venv), "platbase": str(venv)}
    packages = Path(sysconfig.get_path("purelib", "venv", folders))
    scripts = Path(sysconfig.get_path("scripts", "venv", folders))
    python = str(scripts / Path(sys.executable).name)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    run(tmp_path, *pip, str(wheel))
    # Its dependencies are those of this environment, read but not installed again; its code is not.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = "import minimind_dpo; print(minimind_dpo.__file__)"
    assert str(venv) in run(empty, python, "-c", code)
    script = str(scripts / "minimind-dpo")
    assert "experiment" in run(empty, script, "--help")
    short = [
        "experiment=demo",
        "callbacks.judge=none",
        "evaluate.prompts=4",
        "callbacks.samples.enabled=false",
        "trainer.max_steps=2",
        "run_dir=run",
    ]
    text = run(empty, python, "-m", "minimind_dpo.train", *short, OMP_NUM_THREADS="1")
    assert "Done" in text
    assert (empty / "run" / "summary.json").is_file()
    assert (empty / "run" / "export" / "config.json").is_file()
