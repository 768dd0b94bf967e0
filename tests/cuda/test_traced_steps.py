"""A training step on CUDA, traced without one: one attention kernel a layer, no wait."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from traced_support import needs_absent_device, traced

pytestmark = needs_absent_device

GENERATIONS = ("v1", "v2a", "v2", "v3", "v_learn")
H100, RTX_2080_TI = (9, 0), (7, 5)
LAYERS = 2
HALF = [
    {"generation": generation, "precision": precision, "capability": H100}
    for generation, precision in itertools.product(GENERATIONS, ("bf16", "fp16"))
]
# torch has a grouped product of experts for bfloat16 alone.
HALF += [
    {"generation": generation, "precision": "bf16", "capability": H100, "moe": True}
    for generation in ("v1", "v2", "v3")
]
OLD = [
    {"generation": generation, "precision": "fp16", "capability": RTX_2080_TI}
    for generation in ("v3", "v_learn")
]
FULL = [{"generation": "v3", "precision": "fp32", "capability": H100}]


def _key(asked: dict[str, Any]) -> str:
    moe = "-moe" if asked.get("moe") else ""
    return f"{asked['generation']}{moe}-{asked['precision']}-{asked['capability'][0]}"


@pytest.fixture(scope="module")
def steps() -> dict[str, dict[str, Any]]:
    """What each step did, from one process: the guard has to be loaded before torch is."""
    asked = [*HALF, *OLD, *FULL]
    answers = traced("traced_steps.py", asked)
    return {_key(one): answer for one, answer in zip(asked, answers, strict=True)}


@pytest.mark.parametrize("asked", HALF, ids=_key)
def test_half_precision_runs_one_attention_kernel_a_layer_and_pass(
    asked: dict[str, Any], steps: dict[str, dict[str, Any]]
) -> None:
    step = steps[_key(asked)]
    assert step["refusals"] == []
    assert step["attention"] == {"varlen": LAYERS, "varlen backward": LAYERS}
    assert step["kernels"] < 700


@pytest.mark.parametrize("asked", [*HALF, *OLD], ids=_key)
def test_the_head_s_products_are_written_in_float32(
    asked: dict[str, Any], steps: dict[str, dict[str, Any]]
) -> None:
    """Two blocks of the vocabulary, each for logits, gradients of states and of weights."""
    assert steps[_key(asked)]["widened"] == 2 * 3


@pytest.mark.parametrize("asked", [*HALF, *OLD, *FULL], ids=_key)
def test_a_step_never_waits_for_the_device(
    asked: dict[str, Any], steps: dict[str, dict[str, Any]]
) -> None:
    assert steps[_key(asked)]["waits"] == []


@pytest.mark.parametrize("asked", [*HALF, *OLD, *FULL], ids=_key)
def test_a_batch_goes_to_the_device_in_three_asynchronous_copies(
    asked: dict[str, Any], steps: dict[str, dict[str, Any]]
) -> None:
    """int64, int32 and float32."""
    kinds = [upload.split(" at ")[0] for upload in steps[_key(asked)]["uploads"]]
    assert kinds == ["asynchronous"] * 3


@pytest.mark.parametrize("asked", [*OLD, *FULL], ids=_key)
def test_cards_and_precisions_without_the_kernel_never_reach_it(
    asked: dict[str, Any], steps: dict[str, dict[str, Any]]
) -> None:
    step = steps[_key(asked)]
    assert step["refusals"] == []
    assert "varlen" not in step["attention"]
    # Neither cuDNN's plan for each new shape nor all scores written out.
    assert not {"cudnn", "math"} & step["attention"].keys()
