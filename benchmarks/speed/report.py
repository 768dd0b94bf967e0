"""From single results to a table: medians over rounds, and ratios of the same round's runs.

A ratio of two ways is taken within a round, where both ran the same pairs minutes apart; the
median of those ratios is reported, with the smallest and the largest. A ratio of medians would mix
rounds, whose pairs differ in length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from rich.table import Table

from speed.request import Request, Result, base_of

PEERS = (
    "notebook",
    "dynamic",
    "trl",
    "trl-cold",
    "trl-warm",
    "trl-split",
    "trl-split-cold",
    "trl-split-warm",
)
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (1e-2, 5e-2), "float16": (2e-3, 1e-2)}
"""First loss, absolute in nats; first gradient norm, relative."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over a way's rounds.

    Attributes:
        way: Its name.
        pairs_per_second: On the wall, or per CPU-second on a CPU (`unit`).
        cpu_seconds: Of all threads, a pair.
        wall_seconds: A pair.
        tokens_per_second: Real tokens, in the same unit of time as pairs.
        matmul_rate: FLOP/s of a plain matrix product around the timed parts.
        useful_share: Of that rate, reached with arithmetic that DPO needs.
        executed_share: Of that rate, reached with all that the way computed.
        peak_bytes: Most memory of any round.
        pass_share: Of the time, in the reference pass ahead.
        first_loss: Of the first round's first step.
        first_grad_norm: Likewise.
    """

    way: str
    pairs_per_second: float
    cpu_seconds: float
    wall_seconds: float
    tokens_per_second: float
    matmul_rate: float
    useful_share: float
    executed_share: float
    peak_bytes: int
    pass_share: float
    first_loss: float
    first_grad_norm: float


def seconds(result: Result, device: str) -> float:
    """What a run cost, as its device is measured."""
    return result.cpu_seconds if device == "cpu" else result.wall_seconds


def summarise(results: Sequence[Result], device: str) -> list[Summary]:
    """One line a way, in the order in which they first ran."""
    summaries = []
    for way in _ways(results):
        runs = [r for r in results if r.way == way]
        costs = [seconds(run, device) for run in runs]
        rates = [sum(run.matmul_rates) / len(run.matmul_rates) for run in runs]

        def middle(values: Iterable[float], costs: list[float] = costs) -> float:
            return median(value / cost for value, cost in zip(values, costs, strict=True))

        summaries.append(
            Summary(
                way=way,
                pairs_per_second=middle(r.pairs for r in runs),
                cpu_seconds=median(r.cpu_seconds / r.pairs for r in runs),
                wall_seconds=median(r.wall_seconds / r.pairs for r in runs),
                tokens_per_second=middle(r.real_tokens for r in runs),
                matmul_rate=median(rates),
                useful_share=middle(
                    r.useful_flops / rate for r, rate in zip(runs, rates, strict=True)
                ),
                executed_share=middle(
                    r.executed_flops / rate for r, rate in zip(runs, rates, strict=True)
                ),
                peak_bytes=max(r.peak_bytes for r in runs),
                pass_share=median(r.pass_share for r in runs),
                first_loss=runs[0].first_loss,
                first_grad_norm=runs[0].first_grad_norm,
            )
        )
    return summaries


def ratios(
    results: Sequence[Result], device: str, way: str, peer: str
) -> tuple[float, float, float] | None:
    """How many times faster `way` is than `peer`: median, least and most over rounds."""
    costs = {(r.way, r.round): seconds(r, device) for r in results if not r.skipped}
    found = [
        costs[peer, number] / costs[way, number]
        for name, number in costs
        if name == way and (peer, number) in costs
    ]
    return (median(found), min(found), max(found)) if found else None


def disagreements(results: Sequence[Result]) -> list[str]:
    """Ways whose first step differs from ln 2, or from others' of its round and precision."""
    found = []
    ran = [r for r in results if not r.skipped]
    for number, precision in sorted({(r.round, r.precision) for r in ran}):
        loss_bound, norm_bound = TOLERANCES[precision]
        runs = [r for r in ran if (r.round, r.precision) == (number, precision)]
        norm = median(r.first_grad_norm for r in runs)
        for run in runs:
            where = f"{run.way}, round {number}"
            if not abs(run.first_loss - math.log(2)) <= loss_bound:
                found.append(f"{where}: first loss {run.first_loss:.6f}, not ln 2 = 0.693147")
            if not abs(run.first_grad_norm - norm) <= norm_bound * norm:
                found.append(f"{where}: first grad norm {run.first_grad_norm:.6g}, not {norm:.6g}")
    return found


def missed(results: Sequence[Result], batch_size: int, most_ms: float) -> list[str]:
    """Warm ways of ours that miss a gate: a first loss within 0.001 of ln 2, a mean step in time.

    Args:
        results: Of all runs.
        batch_size: Pairs of a step.
        most_ms: Longest mean step, in milliseconds on the wall.
    """
    found = []
    for run in results:
        if run.skipped or not base_of(run.way).startswith("warm"):
            continue
        where = f"{run.way}, round {run.round}"
        mean = 1000 * run.wall_seconds / (run.pairs / batch_size)
        if mean > most_ms:
            found.append(f"{where}: a step takes {mean:.1f} ms, not {most_ms:g} at most")
        if not abs(run.first_loss - math.log(2)) <= 1e-3:
            found.append(f"{where}: first loss {run.first_loss:.5f}, not within 0.001 of ln 2")
    return found


def speed_table(summaries: Sequence[Summary], device: str) -> Table:
    """What each way reaches."""
    unit = "CPU-s" if device == "cpu" else "s"
    table = Table(title="Throughput, medians over rounds")
    table.add_column("way", no_wrap=True, min_width=max(len(row.way) for row in summaries))
    for name in (f"pairs / {unit}", f"{unit} / pair", f"real tokens / {unit}"):
        table.add_column(name, justify="right")
    for name in ("matmul GFLOP/s", "useful", "executed", "peak memory", "first loss", "grad norm"):
        table.add_column(name, justify="right")
    for row in summaries:
        table.add_row(
            row.way,
            f"{row.pairs_per_second:.3g}",
            f"{row.cpu_seconds if device == 'cpu' else row.wall_seconds:.3g}",
            f"{row.tokens_per_second:,.0f}",
            f"{row.matmul_rate / 1e9:,.0f}",
            f"{row.useful_share:.1%}",
            f"{row.executed_share:.1%}",
            f"{row.peak_bytes / 2**30:.2f} GiB",
            f"{row.first_loss:.6f}",
            f"{row.first_grad_norm:.5g}",
        )
    return table


def ratio_table(results: Sequence[Result], device: str) -> Table | None:
    """How many times faster each way is than each peer; None where only one way ran, or no peer."""
    ways = _ways(results)
    peers = [way for way in ways if base_of(way) in PEERS]
    if not peers or len(ways) < 2:
        return None
    title = "Times faster than (median of the rounds' ratios, least - most)"
    table = Table(title=title, min_width=len(title))
    table.add_column("way")
    for peer in peers:
        table.add_column(peer, justify="right")
    for way in (way for way in ways if base_of(way) != "notebook"):
        cells = []
        for peer in peers:
            found = None if peer == way else ratios(results, device, way, peer)
            cells.append("" if found is None else "{:.2f} ({:.2f} - {:.2f})".format(*found))
        table.add_row(way, *cells)
    return table


def skipped(results: Sequence[Result]) -> list[str]:
    """Why ways are missing, once each."""
    reasons = {r.way: r.skipped for r in results if r.skipped}
    return [f"{way}: skipped, {reason}" for way, reason in reasons.items()]


def describe(request: Request, lengths: Sequence[Sequence[int]]) -> str:
    """One line on the workload."""
    prompt, chosen, rejected = (sum(row[i] for row in lengths) / len(lengths) for i in range(3))
    rectangle = 2 * (request.max_length - 1)
    real = (2 * prompt + chosen + rejected - 2) / rectangle
    shared = (prompt + chosen + rejected - 2) / rectangle
    return (
        f"{len(lengths)} pairs, mean tokens: prompt {prompt:.0f}, chosen {chosen:.0f}, rejected "
        f"{rejected:.0f}; of the rectangle padded to {request.max_length}, {real:.0%} are real "
        f"and {shared:.0%} are left when prompts are shared"
    )


def _ways(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(r.way for r in results if not r.skipped))
