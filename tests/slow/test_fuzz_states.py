"""Resume states with right checksums and other entries: refused by name, or without effect."""

from __future__ import annotations

import copy
import random
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from minimind_dpo.training.resume.content import CONTENT, HEADER, content_digest

pytestmark = pytest.mark.slow

ARGS = ["model.dropout=0.1", "trainer.val_check_interval=4", "resume=auto"]
MORE = [*ARGS, "resume_with_changes=true", "trainer.max_steps=9"]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every entry of a state, as keys from the outside to the inside."""
    if at:
        yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def alter(state: dict[str, Any], place: tuple[Any, ...], draw: random.Random) -> str:
    """Put something else into a place, or take it away; says what."""
    inner: Any = state
    for key in place[:-1]:
        inner = inner[key]
    old = inner[place[-1]]
    odd: list[Any] = [None, {}, [], "x", 5, -1, 1e9, torch.zeros(3), torch.zeros(0), True, ...]
    if isinstance(old, torch.Tensor):
        odd += [old.bool(), old.flatten()[:1].clone(), old[None].clone()]
    new = draw.choice(odd)
    if new is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = new
    return f"{place}: {str(new)[:40]}"


def ends_as(cli: Any, run: str, whole: str) -> bool:
    got, expected = cli.weights(run), cli.weights(whole)
    return got.keys() == expected.keys() and all(
        torch.equal(got[name], tensor) for name, tensor in expected.items()
    )


@pytest.mark.parametrize(("sealed", "count"), [(False, 89), (True, 80)])
def test_no_altered_state_is_resumed_with_other_numbers(cli: Any, sealed: bool, count: int) -> None:
    """Sealed: forged, with the digest of what is in it; it may end in an error of any kind."""
    start, whole = cli.folder / "start", cli.folder / "whole"
    code, text = cli.run(*ARGS, "run_dir=start", "trainer.max_steps=6")
    assert code == 0, text
    file = max((start / "checkpoints").glob("step-*.ckpt"))
    good = torch.load(file, weights_only=True)
    shutil.copytree(start, whole)
    code, text = cli.run(*MORE, "run_dir=whole")
    assert code == 0, text
    by_top: dict[str, list[tuple[Any, ...]]] = {}
    for place in places(good):
        if place[0] != "pytorch-lightning_version":
            by_top.setdefault(place[0], []).append(place)
    draw, faults = random.Random(count), []
    for number in range(count):
        run = cli.folder / f"run{number}"
        state = copy.deepcopy(good)
        what = alter(state, draw.choice(by_top[draw.choice(list(by_top))]), draw)
        if sealed and isinstance(state.get(HEADER), dict):
            state[HEADER].pop(CONTENT, None)
            state[HEADER][CONTENT] = content_digest(state)
        shutil.copytree(start, run)
        for old in (run / "checkpoints").glob("step-*.ckpt"):
            old.unlink()
        torch.save(state, run / "checkpoints" / file.name)
        code, text = cli.run(*MORE, f"run_dir={run.name}")
        refused = code == 2 and file.name in text and "Error:" in text
        harmless = code == 0 and (sealed or ends_as(cli, run.name, "whole"))
        forged = sealed and code == 1 and "Error:" in text
        if not forged and ("Traceback" in text or not (refused or harmless)):
            faults.append(f"{what}: ended with {code}: {text[-300:]}")
        shutil.rmtree(run)
    print(f"{count} states, {len(faults)} broken")
    assert faults == []
