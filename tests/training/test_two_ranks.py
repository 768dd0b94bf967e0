"""Ranks of one run: the options of DDP change no number, and each rank takes its own device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composed import composed
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader
from training_support import made_up_pairs, quiet_trainer, tiny_model

from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.data.batches.loader import LaidOutPairs
from minimind_dpo.data.batches.step_plan import StepSampler, StepShape
from minimind_dpo.data.store import prepare
from minimind_dpo.run.build import build_tokenizer
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.run.opening import open_run
from minimind_dpo.training import distributed
from minimind_dpo.training.distributed import RankGuard, choose_device, make_strategy
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions
from minimind_dpo.training.signals import StopRequest


def on_two_ranks(program: Callable[[int], Any], folder: Path, start: str = "fork") -> list[Any]:
    """What `program(rank)` returns on each of two ranks, started as torchrun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context: Any = multiprocessing.get_context(start)
    ranks = [context.Process(target=run, args=(program, rank, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def run(program: Callable[[int], Any], rank: int, port: int, folder: Path) -> None:
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0, "MASTER_PORT": port}
    own = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RUN_ID": "none"}
    os.environ |= {name: str(value) for name, value in {**shared, **own}.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.save(program(rank), folder / f"{rank}.pt")


def test_a_signal_to_one_rank_stops_all_by_one_question(tmp_path: Path) -> None:
    """Rank 1 alone was asked to stop; what came after the question is for the next one."""

    def program(rank: int) -> list[int]:
        torch.distributed.init_process_group("gloo")
        trainer: Any = SimpleNamespace(world_size=2)
        stop = StopRequest()
        before = stop.ask(trainer)
        stop.signum = signal.SIGUSR1 if rank else 0
        answers = [before(), stop.ask(trainer)()]
        return [int(stopped.signum) if stopped else 0 for stopped in answers]

    assert on_two_ranks(program, tmp_path) == [[0, signal.SIGUSR1]] * 2


def weights_after_training(strategy: Any, rank: int) -> dict[str, Tensor]:
    """17 pairs, 2 x 2 x 2 a step: rank 1 is left without a pair in the last step."""
    pairs, collate = made_up_pairs(17), Collator("prefix_shared", max_length=64)
    lengths = np.array([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in pairs])
    sampler = StepSampler(
        np.arange(17), collate.tokens(lengths), StepShape(2, 2, 2), rank=rank, shuffle=False
    )
    batches = DataLoader(LaidOutPairs(pairs, collate), sampler=sampler, batch_size=None)  # type: ignore[arg-type]
    assert [len(batch.pair_index) for batch in batches][-1] == (rank == 0)
    module = DPOModule(tiny_model(), tiny_model(1), optimizer=OptimizerOptions(lr=1e-2))
    trainer = quiet_trainer(
        strategy=strategy,
        devices=2,
        max_epochs=2,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
        logger=False,
    )
    trainer.fit(module, batches)
    assert trainer.global_step == 6
    return {name: p.detach() for name, p in module.policy.named_parameters()}


def test_the_options_of_ddp_change_no_number(tmp_path: Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours"
    plain.mkdir()
    ours.mkdir()
    # A build for CUDA cannot run a backward pass in a fork of a process that has run one.
    start = "fork" if torch.version.cuda is None else "spawn"
    expected = on_two_ranks(partial(weights_after_training, DDPStrategy()), plain, start)
    strategy = make_strategy("auto", 2, 60)
    options = strategy._ddp_kwargs  # type: ignore[union-attr]
    assert options["gradient_as_bucket_view"]
    assert not options.get("forward_sync_buffers", options.get("broadcast_buffers"))
    assert not options["static_graph"]
    actual = on_two_ranks(partial(weights_after_training, strategy), ours, start)
    for name, weight in tiny_model().named_parameters():
        first, second = (rank[name] for rank in actual)
        assert torch.equal(first, second)
        assert torch.equal(first, expected[0][name])
        assert not torch.equal(first, weight.detach())


def test_one_rank_tokenises_and_the_others_read_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = [f"run_dir={tmp_path / 'run'}", f"data.cache_dir={tmp_path / 'cache'}"]
    config = composed(["experiment=demo", "trainer.devices=2", *where])
    built: list[int] = []
    run = prepare._Builder.run

    def counted(*args: Any) -> None:
        built.append(1)
        run(*args)

    monkeypatch.setattr(prepare._Builder, "run", counted)

    def opened(rank: int) -> list[int]:
        _, data, *_ = open_run(config, build_tokenizer(config), FolderLock(), rank == 0)
        return [len(built), len(data.train_rows)]

    # Its files are two, for training and for validation.
    assert on_two_ranks(opened, tmp_path) == [[2, 1500], [0, 1500]]


@pytest.mark.parametrize(
    ("devices", "local_rank", "there", "chosen"),
    [
        ([2, 3], 1, 4, 3),
        (2, 1, 4, 1),
        (None, 3, 4, 3),
        ([0], 1, 1, 0),  # srun --gpus-per-task=1: each rank sees its own device as the first
    ],
)
def test_a_rank_takes_the_device_that_was_asked_for(
    devices: Any, local_rank: int, there: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    choose_device(devices)
    assert taken == [chosen]


def test_a_rank_that_nccl_ends_is_said_to_have_waited(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child: Any = SimpleNamespace(poll=lambda: -signal.SIGABRT)
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    ranks = RankGuard(1800)
    ranks._children = [child]
    ranks.report(RuntimeError("connection closed by peer"))
    text = capsys.readouterr().err
    assert "rank 1 disappeared: it was ended by SIGABRT, with which NCCL ends a process" in text
    assert "waited 1800 s (guard.rank_timeout) for another rank" in text
