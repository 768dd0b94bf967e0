"""The benchmark's own code at toy size: what it counts, what it compares, every way of ours."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import throughput  # noqa: E402
from speed.arithmetic import (  # noqa: E402
    Dimensions,
    Passes,
    executed_flops,
    layout_passes,
    useful_flops,
)
from speed.clock import Clock, matmul_rate, peak_memory  # noqa: E402
from speed.peer_trl import micro_batches  # noqa: E402
from speed.report import disagreements, missed, ratios, summarise  # noqa: E402
from speed.request import Request, Result  # noqa: E402
from speed.worker import WAYS, measure  # noqa: E402
from speed.workload import SHAPES, Workload, prepare  # noqa: E402

# Tokens of prompt, chosen and rejected of two pairs.
LENGTHS = np.array([[3, 2, 4], [1, 1, 1]])


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    folder = tmp_path_factory.mktemp("benchmark")
    return prepare("minimind3-tiny", None, [], max_length=96, seed=0, folder=folder)


def _request(workload: Workload, way: str) -> Request:
    return Request(
        way=way,
        model=workload.model,
        tokenizer=workload.tokenizer,
        store=workload.store,
        warmup=workload.take(0, 2),
        rows=workload.take(2, 4),
        batch_size=2,
        max_length=96,
        allocator=False,
        matmul_size=64,
    )


def _run(way: str, number: int = 0, cpu: float = 1.0, **fields: Any) -> Result:
    common: dict[str, Any] = {
        "pairs": 2,
        "wall_seconds": 2 * cpu,
        "first_loss": math.log(2),
        "first_grad_norm": 5,
    }
    return Result(way, number, cpu_seconds=cpu, matmul_rates=[100.0], **{**common, **fields})


def test_a_shared_prompt_is_counted_once_and_the_last_tokens_of_answers_are_not_run() -> None:
    # Pair 1 runs 3 + (2 - 1) + (4 - 1) = 7 tokens, pair 2 runs 1; the head scores 6 + 2.
    # Pair 1 attends 1 + 2 + 3 + 4, then three rejected tokens to 3 + 1, 3 + 2 and 3 + 3 keys.
    assert layout_passes("shared", LENGTHS) == Passes(tokens=8, scored=8, attended=10 + 15 + 1)


def test_packed_sequences_run_the_prompt_twice() -> None:
    # 4 and 6 tokens, then 1 and 1; triangles of 10, 21, 1 and 1.
    assert layout_passes("packed", LENGTHS) == Passes(tokens=12, scored=8, attended=33)


def test_rectangles_are_as_wide_as_their_longest_row_and_masked_attention_is_square() -> None:
    assert layout_passes("dynamic", LENGTHS, batch_size=2) == Passes(24, 8, 4 * 36)
    assert layout_passes("dynamic", LENGTHS, batch_size=1) == Passes(14, 8, 2 * 36 + 2)


def test_the_notebooks_rectangle_is_full_length_and_every_position_has_logits() -> None:
    assert layout_passes("notebook", LENGTHS, 2, max_length=8) == Passes(28, 28, 4 * 28)


def test_flops_follow_two_per_weight_and_four_per_attended_pair_and_width() -> None:
    dims = Dimensions(backbone=100, head=10, attention=5)
    forward = 2 * 100 * 8 + 2 * 10 * 8 + 4 * 5 * 26
    assert useful_flops(dims, LENGTHS, reference=False) == 3 * forward
    assert useful_flops(dims, LENGTHS, reference=True) == 4 * forward
    shared = layout_passes("shared", LENGTHS)
    again = 2 * 10 * 8 + 1.5 * 4 * 5 * 26 - 1.0 * 4 * 5 * 26
    assert executed_flops(dims, shared, None, head_again=True) == 3 * forward + again
    assert executed_flops(dims, shared, shared, head_again=True) == 4 * forward + again


def test_dimensions_are_read_off_the_matrices() -> None:
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    # q and o are 8 x 8, k and v 4 x 8, the three of the FFN 12 x 8.
    expected = Dimensions(3 * (2 * 64 + 2 * 32 + 3 * 96), 11 * 8, 3 * 2 * 4)
    assert Dimensions.of(LlamaForCausalLM(config)) == expected


def test_a_clock_adds_parts_of_one_name_and_takes_the_matmul_rate_around_each() -> None:
    clock = Clock("cpu", torch.float32, 32)
    for part in ("steps", "pass", "steps"):
        with clock.timing(part):
            sum(range(10_000))
    assert list(clock.cpu) == ["steps", "pass"]
    assert [len(rates) for rates in clock.rates.values()] == [4, 2]
    assert min(clock.rates["steps"]) > 0
    assert clock.cost is clock.cpu


def test_memory_and_matmul_rate_are_plausible() -> None:
    assert matmul_rate("cpu", torch.float32, 64) > 1e6
    assert peak_memory("cpu") == 0 or peak_memory("cpu") > 50 * 2**20


def test_rounds_take_the_next_pairs_and_wrap_at_the_end(workload: Workload) -> None:
    count = len(workload.order)
    assert workload.take(0, 4)[2:] == workload.take(2, 2)
    assert workload.take(count - 1, 2) == [workload.order[-1], workload.order[0]]
    assert sorted(workload.take(0, count)) == list(range(count))


def test_shapes_have_the_originals_feed_forward_width() -> None:
    assert [64 * math.ceil(math.pi * s.hidden / 64) for s in SHAPES.values()] == [1664, 2432, 256]


OURS = [way for way in WAYS if not way.startswith("trl")]


@pytest.fixture(scope="module")
def measured(workload: Workload) -> dict[str, Result]:
    torch.set_num_threads(1)
    apart = [way for way in OURS if way not in ("warm", "split-warm")]
    return {r.way: r for way in apart for r in measure(_request(workload, way))}


def test_every_way_starts_from_ln_2_with_the_same_gradient(measured: dict[str, Result]) -> None:
    assert disagreements(list(measured.values())) == []
    assert {way: round(r.first_loss, 6) for way, r in measured.items()} == dict.fromkeys(
        OURS, 0.693147
    )
    norms = [result.first_grad_norm for result in measured.values()]
    assert max(norms) == pytest.approx(min(norms), rel=1e-4)


def test_every_way_needs_the_same_arithmetic_but_for_a_reference_known_before(
    measured: dict[str, Result],
) -> None:
    needed = {way: result.useful_flops for way, result in measured.items()}
    known = {way: needed[way] * 4 / 3 for way in ("warm", "split-warm", "warm-trainer")}
    assert {**needed, **known} == pytest.approx(dict.fromkeys(OURS, needed["shared"]))
    assert all(r.executed_flops > r.useful_flops for r in measured.values())


def test_ways_run_fewer_tokens_the_less_they_repeat(measured: dict[str, Result]) -> None:
    order = ("notebook", "dynamic", "packed", "shared", "cold", "warm")
    tokens = [measured[way].tokens_run for way in order]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] == 2 * 4 * 95
    assert tokens[3] == tokens[5] < tokens[2]


def test_only_the_cold_way_spends_time_on_a_pass_ahead(measured: dict[str, Result]) -> None:
    assert {way for way, result in measured.items() if result.pass_share > 0} == {
        "cold",
        "split-cold",
    }


def test_a_cold_run_without_its_pass_is_a_warm_run(
    workload: Workload, measured: dict[str, Result]
) -> None:
    cold, warm = measured["cold"], measured["warm"]
    assert warm.cpu_seconds == pytest.approx(cold.cpu_seconds * (1 - cold.pass_share))
    (alone,) = measure(_request(workload, "warm"))
    counted = ("first_loss", "first_grad_norm", "useful_flops", "executed_flops", "tokens_run")
    assert all(getattr(alone, name) == getattr(warm, name) for name in counted)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_agrees_within_its_own_precision(workload: Workload, precision: str) -> None:
    ways = ("notebook", "shared", "warm", "warm-trainer")
    half = [
        result
        for way in ways
        for result in measure(dataclasses.replace(_request(workload, way), precision=precision))
    ]
    assert disagreements(half) == []
    assert all(0 < result.first_grad_norm < math.inf for result in half)


def test_a_missing_trl_is_skipped_with_what_to_do(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    (result,) = measure(_request(workload, "trl-warm"))
    assert "pip install 'minimind-dpo[bench]'" in result.skipped
    assert result.pairs == 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["trl", "trl-cold", "trl-split-warm"])
def test_trl_starts_from_the_same_loss_and_gradient(
    workload: Workload, measured: dict[str, Result], way: str
) -> None:
    results = measure(_request(workload, way))
    assert disagreements([*results, measured["shared"], measured["packed"]]) == []


def test_split_steps_of_trl_hold_the_pairs_of_the_others() -> None:
    request = Request("trl", "", "", "", [1, 2], [3, 4, 5, 6], batch_size=2)
    assert micro_batches(request, 2) == [[0, 1], [2, 3], [4, 5]]
    assert micro_batches(request, 1) == [[0], [1], [2], [3], [4], [5]]
    # A first step of fewer pairs than passes goes round: the mean over pairs stays.
    fewer = dataclasses.replace(request, rows=[3, 4, 5, 6], batch_size=4)
    assert micro_batches(fewer, 1) == [[0], [1], [0], [1], [2], [3], [4], [5]]


def test_ratios_compare_runs_of_one_round() -> None:
    # Longer pairs in the second round: each ratio is 2 or 3, though the medians' would be 3.5.
    runs = [_run("a", 0, 1.0), _run("b", 0, 2.0), _run("a", 1, 4.0), _run("b", 1, 12.0)]
    assert ratios(runs, "cpu", "a", "b") == (2.5, 2.0, 3.0)
    assert ratios(runs, "cpu", "a", "c") is None


def test_a_summary_holds_medians_and_the_largest_memory() -> None:
    runs = [
        _run("a", number, cpu, useful_flops=60.0 * cpu, peak_bytes=number)
        for number, cpu in enumerate((1.0, 4.0, 2.0))
    ]
    (row,) = summarise([*runs, Result("trl", 0, skipped="not here")], "cpu")
    assert (row.cpu_seconds, row.pairs_per_second, row.peak_bytes) == (1.0, 1.0, 2)
    assert row.useful_share == pytest.approx(0.6)
    (on_gpu,) = summarise(runs, "cuda")
    assert on_gpu.pairs_per_second == 0.5


def test_runs_of_a_precision_agree_with_each_other() -> None:
    half = {"first_grad_norm": 5.1, "precision": "bfloat16"}
    runs = [_run("a"), _run("b"), _run("a+bfloat16", **half), _run("b+bfloat16", **half)]
    assert disagreements(runs) == []


def test_a_way_that_computes_something_else_is_named() -> None:
    runs = [_run("a"), _run("b"), _run("c", first_loss=0.70), _run("d", first_grad_norm=5.1)]
    assert disagreements(runs) == [
        "c, round 0: first loss 0.700000, not ln 2 = 0.693147",
        "d, round 0: first grad norm 5.1, not 5",
    ]


def test_variants_of_a_way_are_ways_of_their_own(workload: Workload, tmp_path: Path) -> None:
    ways = "cold,warm,cold+compile,warm+compile+bfloat16,warm+compile"
    given = throughput.parse(["--ways", ways, "--rounds", "1", "--device", "cpu"])
    asked = throughput.requests(given, workload, tmp_path)
    assert [(r.way, r.compiled, r.precision) for r in asked] == [
        ("cold", False, "float32"),
        ("cold+compile", True, "float32"),
        ("warm+compile+bfloat16", True, "bfloat16"),
    ]


def test_a_variant_is_counted_as_its_way_is(
    workload: Workload, measured: dict[str, Result]
) -> None:
    cold, warm = measure(_request(workload, "cold+float32"))
    assert (cold.way, warm.way) == ("cold+float32", "warm+float32")
    for result, known in ((cold, measured["cold"]), (warm, measured["warm"])):
        assert result.executed_flops == known.executed_flops
        assert result.useful_flops == known.useful_flops


def test_one_command_writes_table_json_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--model minimind3-tiny --pairs 2 --batch-size 2 --rounds 1 --max-length 64"
    arguments = [*sizes.split(), "--ways", "shared", "--profile", "--out", str(tmp_path)]
    assert throughput.main(arguments) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["way"] for row in found["summary"]] == ["shared"]
    assert found["runs"][0]["pairs"] == 2
    if importlib.util.find_spec("matplotlib") is None:
        assert "no picture: matplotlib is missing" in shown
    else:
        assert (tmp_path / "throughput.png").stat().st_size > 1000
    assert "aten::" in (tmp_path / "profile-shared.txt").read_text()
    assert "Throughput" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--ways", "quick"], "--ways: quick; there are notebook, "),
        (["--pairs", "0"], "--pairs is 0, but must be at least 1"),
        (["--micro-batch", "3"], "--micro-batch 3 must divide --batch-size 8"),
        (["--pairs", "12"], "--pairs 12 must be a multiple of --batch-size 8"),
        (["--warmup-pairs", "3"], "--warmup-pairs 3 must divide the 8 passes of a step"),
        (["--ways", "warm+fast"], "warm+fast: fast is none of compile, float32, bfloat16, float16"),
        (["--ways", "warm+float32+bfloat16"], "one precision and one compile at most"),
        (["--ways", "notebook+compile"], "the notebook compiles nothing"),
    ],
)
def test_a_senseless_command_line_is_refused(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.parse(arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_steps_before_the_clock_starts_are_in_no_number(workload: Workload) -> None:
    all_of_it = measure(_request(workload, "warm"))[0]
    request = dataclasses.replace(_request(workload, "warm"), untimed=1)
    assert request.timed == request.rows[2:]
    behind = measure(request)[0]
    assert (all_of_it.pairs, behind.pairs) == (4, 2)
    assert behind.useful_flops < all_of_it.useful_flops
    assert behind.first_loss == all_of_it.first_loss


def test_a_gpu_gets_more_pairs_in_larger_steps_behind_some_that_are_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def taken() -> tuple[str, int, int, int]:
        given = throughput.parse([])
        return given.device, given.pairs, given.batch_size, given.warmup_steps

    assert taken() == ("cpu", 24, 8, 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert taken() == ("cuda", 1024, 32, 20)
    given = throughput.parse([])
    assert {"warm+compile", "trl-liger", "trl-warm", "notebook"} <= set(given.ways)
    assert throughput.parse(["--pairs", "64", "--ways", "warm"]).pairs == 64


def test_a_gate_holds_the_warm_ways_to_a_step_s_time_and_to_ln_2() -> None:
    """2 pairs a step in 2 s on the wall: 2,000 ms."""
    fine, off = _run("warm"), _run("warm-trainer", first_loss=math.log(2) + 0.002)
    assert missed([fine, _run("trl-warm", cpu=9.0)], 2, 2000.0) == []
    (late,) = missed([fine], 2, 1999.0)
    assert "a step takes 2000.0 ms, not 1999 at most" in late
    (loss,) = missed([off], 2, 2000.0)
    assert "not within 0.001 of ln 2" in loss
