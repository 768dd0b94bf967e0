"""Odd environments, names, files in a run's folder, and full disks end a run in a sentence."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo.config.command_line import quoted

pytestmark = pytest.mark.slow

ONE = ["trainer.max_steps=1", "trainer.val_check_interval=1.0"]
NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS")
NUMBERS += ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_RESTART_COUNT")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
ENVIRONMENTS: list[dict[str, str]] = [
    *({name: value} for name in NUMBERS for value in ("abc", "", "-1", "1.5", "0")),
    *({"SLURM_JOB_ID": "x"}, {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "2"}),
    *({"SLURM_JOB_NAME": "bash", "SLURM_NTASKS": "2"}, {"TORCHELASTIC_RUN_ID": "x"}),
    *({**TORCHRUN, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}, {"HOME": "/nowhere"}),
    *({"MINIMIND_DPO_RUN": "junk"}, {"MINIMIND_DPO_RUN": "junk", "LOCAL_RANK": "1"}),
    *({"MINIMIND_DPO_SWEEP": "abc"}, {"MINIMIND_DPO_LAUNCHER": "abc", "LOCAL_RANK": "1"}),
    *({"TMPDIR": "/nowhere"}, {"HF_HOME": "/proc/x"}, {"LC_ALL": "C"}, {"TERM": "dumb"}),
    *({"COLUMNS": "1"}, {"COLUMNS": "abc"}, {"CUDA_VISIBLE_DEVICES": "x"}, {"NO_COLOR": "1"}),
]
NAMES = ["a b", "中文", " lead", "trail ", "-dash", "dot.", "a'b", 'a"b', "a$b", "a`b", "a;b", "#h"]
NAMES += ["{b}", "[b]", "(b)", "a=b", "a,b", "~t", "a\tb", "é" * 60, "😀", "%s", "\\$"]
JUNK = [b"", b"{", b"\0" * 500, b"[1]", b'{"steps": 6}', b"\xff\xfe", b"# My notes\n", b"a,b\n1\n"]
FILES = ("summary.json", "samples.md", "csv/metrics.csv", "config.yaml", ".lock", "verdict.json")
FOLDERS = ("csv", "tensorboard", "export", "checkpoints/superseded")


def fault(code: int, text: str) -> str:
    """What is wrong with the way a run ends: whatever fails, there is a sentence."""
    if "Traceback" in text or code not in (0, 1, 2) or (code and "Error:" not in text):
        return f"ended with {code}: {text[-400:]}"
    return ""


def test_every_environment_lets_a_run_through_or_is_named(cli: Any) -> None:
    faults = {}
    for number, environment in enumerate(ENVIRONMENTS):
        code, text = cli.run(f"run_dir=e{number}", *ONE, env=environment)
        if said := fault(code, text):
            faults[str(environment)] = said
    print(f"{len(ENVIRONMENTS)} environments, {len(faults)} broken")
    assert faults == {}


def test_every_name_of_a_folder_or_file_can_be_given(cli: Any) -> None:
    faults = {}
    for number, name in enumerate(NAMES):
        shutil.copytree(cli.folder / "model", cli.folder / f"m{name}")
        shutil.copy(cli.folder / "train.jsonl", cli.folder / f"t{name}.jsonl")
        for key, value in (
            *(("output_dir", name), ("data.cache_dir", name), ("model.path", f"m{name}")),
            *(("data.train", f"t{name}.jsonl"), ("run_dir", f"r{name}")),
        ):
            code, text = cli.run(f"run_dir=n{number}{key}", f"{key}={quoted(value)}", *ONE)
            if code:
                faults[f"{key}={value}"] = text[-400:]
    print(f"{5 * len(NAMES)} names, {len(faults)} broken")
    assert faults == {}
    code, text = cli.run("data.train='t${x}.jsonl'", *ONE)  # of another key, to configurations
    assert code == 2
    assert "data.train: cannot be resolved (Interpolation key 'x' not found)" in text


def spoil(path: Path, content: bytes | None) -> None:
    """Put bytes, or a folder with a file, in the place of a file or folder."""
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    if content is None:
        path.mkdir(parents=True)
        (path / "mine.txt").write_text("mine")
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("steps", [6, 9])
def test_junk_among_a_run_s_files_blocks_no_resume_or_is_named(cli: Any, steps: int) -> None:
    """Six steps are the whole run, which has finished."""
    args = [
        "callbacks.samples.enabled=true",
        "callbacks.samples.max_new_tokens=4",
        "export.hf=true",
    ]
    args += ["logger=tensorboard", "trainer.val_check_interval=4", "data.cache_dir=cache"]
    code, text = cli.run("run_dir=start", "trainer.max_steps=6", *args)
    assert code == 0, text
    tried = [(name, junk) for name in FILES for junk in (*JUNK, None)]
    tried += [(name, b"mine") for name in FOLDERS] + [("export/model.safetensors", b"")]
    faults = {}
    for number, (name, junk) in enumerate(tried):
        run = cli.folder / f"run{number}"
        shutil.copytree(cli.folder / "start", run)
        spoil(run / name, junk)
        more = (f"trainer.max_steps={steps}", "resume=auto", "resume_with_changes=true")
        code, text = cli.run(f"run_dir={run.name}", *more, *args)
        exported = (run / "export" / "model.safetensors").is_file()
        if said := fault(code, text) or ("" if code or exported else "no export"):
            faults[f"{name}: {junk!r:.30}"] = said
        shutil.rmtree(run)
    print(f"{len(tried)} spoilt folders, {len(faults)} broken")
    assert faults == {}


@pytest.fixture
def mounted(tmp_path: Path) -> Any:
    """Mounts disks of any size; for root on Linux alone."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a disk of a given size is mounted by root on Linux alone")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_that_fills_anywhere_ends_a_run_that_goes_on_once_there_is_room(
    cli: Any, mounted: Callable[[str], Path]
) -> None:
    sizes = [8, 20, 32, 48, 60, 76, 100, 140, 180, 240, 300, 360, 420, 480, 560, 640, 820, 1100]
    disks = [f"size={size}k" for size in sizes] + [f"nr_inodes={n}" for n in range(3, 60, 4)]
    random.Random(1).shuffle(disks)
    args = ["logger=tensorboard", "export.hf=true", "model.lora.r=2", "trainer.max_steps=5"]
    args += ["callbacks.samples.enabled=true", "callbacks.samples.max_new_tokens=4"]
    faults, full = {}, 0
    for options in disks:
        disk = mounted(options)
        own = [f"run_dir={disk}/run", f"data.cache_dir={disk}/cache", *args]
        code, text = cli.run(*own, env={"TMPDIR": str(disk), "MPLCONFIGDIR": str(disk)})
        full += code != 0
        said = fault(code, text)
        subprocess.run(["mount", "-o", "remount,size=50m,nr_inodes=0", str(disk)], check=True)
        code, text = cli.run(*own, "resume=auto")
        said = said or ("" if code == 0 else f"resumed: {text[-300:]}")
        left = [path.name for path in disk.rglob(".*.tmp")]
        if said or left:
            faults[options] = said or f"left {left}"
    print(f"{len(disks)} disks, {full} filled, {len(faults)} broken")
    assert faults == {}
    assert full > len(disks) // 2
