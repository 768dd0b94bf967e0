"""Whole runs in processes of their own, of a model and data so small that they take seconds."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from program import Driver
from tokenizers import Tokenizer, models, pre_tokenizers


@dataclass
class Process:
    """One run; a session of its own, so that whatever it leaves behind is found."""

    driver: Driver
    pid: int
    out: Path

    def wait(self) -> int:
        return self.driver.ask(wait=self.pid)["code"]

    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def survivors(self, patience: float = 10.0) -> list[int]:
        """Processes of its session that are still there after a while."""
        end = time.monotonic() + patience
        while session(self.pid) and time.monotonic() < end:
            time.sleep(0.1)
        return session(self.pid)


def find_free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@dataclass
class Cli:
    """The command line on toy inputs in one folder."""

    driver: Driver
    folder: Path
    number: int = 0

    @property
    def base(self) -> list[str]:
        """Overrides that every run here has."""
        return BASE

    @staticmethod
    def session_of(leader: int) -> list[int]:
        """Living processes of a session."""
        return session(leader)

    def start(self, *args: str, env: dict[str, str] | None = None, **more: Any) -> Process:
        self.number += 1
        out = self.folder / f"out-{self.number}.txt"
        answer = self.driver.ask(
            args=[*BASE, *args], env=env or {}, cwd=str(self.folder), out=str(out), **more
        )
        return Process(self.driver, answer["pid"], out)

    def run(self, *args: str, **more: Any) -> tuple[int, str]:
        process = self.start(*args, **more)
        return process.wait(), process.text()

    def ranks(
        self, count: int, *args: str, extra: dict[int, dict[str, Any]] | None = None
    ) -> list[Process]:
        """Ranks as torchrun starts them; `extra` has arguments of `start` for single ones."""
        port, started = find_free_port(), []
        for rank in range(count):
            own = dict((extra or {}).get(rank, {}))
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "GROUP_RANK": 0,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": count,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TORCHELASTIC_RUN_ID": "none",
                "TORCHELASTIC_ERROR_FILE": "",
            }
            env = {name: str(value) for name, value in environment.items()}
            more = own.pop("args", [])
            started.append(self.start(*args, *more, env=env, **own))
        return started

    def newest_step(self, run: str) -> int:
        """The optimizer step of a run's newest state; 0 where there is none."""
        states = (self.folder / run / "checkpoints").glob("step-*.ckpt")
        return max((int(path.name[5:13]) for path in states), default=0)

    def wait_for_steps(self, run: str, steps: int, process: Process, start: int = -1) -> None:
        """Until a run has saved a state `steps` steps later than it has now."""
        before = self.newest_step(run) if start < 0 else start
        end = time.monotonic() + 120
        while self.newest_step(run) < before + steps:
            assert time.monotonic() < end, process.text()
            time.sleep(0.002)

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """Weights and optimizer state of a run's newest checkpoint, by name."""
        newest = sorted((self.folder / run / "checkpoints").glob("step-*.ckpt"))[-1]
        state = torch.load(newest, weights_only=True)
        moments = state["optimizer_states"][0]["state"]
        return {
            **state["state_dict"],
            **{f"{i}.{k}": v for i, row in moments.items() for k, v in row.items()},
        }

    def files(self, run: str) -> list[str]:
        """Files of a run's folder, by their path in it."""
        folder = self.folder / run
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def read_json(self, run: str, name: str) -> Any:
        """Content of a file of a run."""
        return json.loads((self.folder / run / name).read_text(encoding="utf-8"))

    def curve(self, run: str) -> dict[tuple[str, str], str]:
        """{(step, name): value} of a run's CSV, throughput apart."""
        import csv

        with (self.folder / run / "csv" / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        return {
            (row["step"], name): value
            for row in rows
            for name, value in row.items()
            if value and name != "step" and "second" not in name
        }


BASE = [
    "model.path=model",
    "data.train=train.jsonl",
    "data.val=val.jsonl",
    "data.max_length=100",
    "data.chat_template=none",
    "data.batch_size=2",
    "data.num_workers=0",
    "guard.check_model=false",
    "optim.lr=0.003",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "trainer.accumulate_grad_batches=2",
    "callbacks.checkpoint.every_n_steps=1",
    "callbacks.samples.enabled=false",
    "callbacks.progress=none",
    "evaluate=none",
    "export.hf=false",
    "logger=csv",
]


def write_inputs(folder: Path) -> None:
    """A one-layer model, its byte tokenizer, 45 training pairs and 6 for validation."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<end>", *alphabet])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>"
    )
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=258,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=128,
        bos_token_id=1,
        eos_token_id=1,
    )
    tf.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    words = ["red", "blue", "sea", "sky", "tree", "stone", "rain", "fire"]
    for name, count in (("train", 45), ("val", 6)):
        rows = [
            {
                "prompt": f"{name} {i} " + " ".join(draw.choice(words, draw.integers(1, 5))),
                "chosen": "yes " + " ".join(draw.choice(words, draw.integers(1, 9))),
                "rejected": "no " + " ".join(draw.choice(words, draw.integers(1, 5))),
            }
            for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)


@pytest.fixture
def cli(driver: Driver, tmp_path: Path) -> Cli:
    if not sys.platform.startswith("linux"):
        pytest.skip("looks for processes in /proc")
    write_inputs(tmp_path)
    return Cli(driver, tmp_path)


@pytest.fixture
def free_port() -> int:
    return find_free_port()
