"""How fast DPO trains, side by side: `python benchmarks/throughput.py`.

The same model, pairs, precision and seed go through every way of training (`speed/ways.py`). Each
run has a process of its own, so that its peak memory is its own; ways alternate within a round, and
each round takes the next pairs of a shuffled order. Per run: one step that is not timed, whose loss
and gradient norm must be the same for every way, then the timed steps. A table, `results.json` and
`throughput.png`, the latter with matplotlib, are written.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from speed.report import (
    describe,
    disagreements,
    missed,
    ratio_table,
    skipped,
    speed_table,
    summarise,
)
from speed.request import (
    PRECISIONS,
    VARIANTS,
    Request,
    Result,
    base_of,
    read_results,
    variants_of,
    warm_of,
    write,
)
from speed.workload import SHAPES, Workload, prepare

from minimind_dpo import check_gpu

DEFAULT_WAYS = (
    "notebook,dynamic,packed,shared,cold,warm,split-cold,split-warm,"
    "trl-cold,trl-warm,trl-split-cold,trl-split-warm"
)
CUDA_WAYS = "notebook,shared,cold,warm,warm+compile,warm-trainer,trl,trl-liger,trl-cold,trl-warm"
WAYS = (*DEFAULT_WAYS.split(","), "trl", "trl-liger", "trl-split", "warm-trainer")
BY_DEVICE = {
    "cpu": {"ways": DEFAULT_WAYS, "pairs": 24, "batch_size": 8, "warmup_steps": 0},
    # Whole steps: about 1,000 pairs, behind 20 steps in which clocks and allocator settle.
    "cuda": {"ways": CUDA_WAYS, "pairs": 1024, "batch_size": 32, "warmup_steps": 20},
}
"""What is taken where nothing is given."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; exits with 2 where it makes no sense."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--model", default="minimind3-512x8", help=f"{', '.join(SHAPES)}; a native file; a folder")
    add("--tokenizer", help="folder; the one beside the model, or the demo's")
    add("--data", nargs="+", default=[], metavar="FILE", help="preference files; the demo's")
    add(
        "--ways",
        help=f"of {', '.join(WAYS)}; +compile and a precision may follow",
    )
    add("--through-trainer", action="store_true", help="warm-trainer as well")
    add("--rounds", type=int, default=3, help="repetitions, each on the next pairs")
    add(
        "--pairs", type=int, help="timed pairs of a round, 24 or 1,024; data repeats if it is short"
    )
    add("--warmup-steps", type=int, help="steps behind the first that are not timed, 0 or 20")
    add("--warmup-pairs", type=int, help="pairs of the first step, not timed; --batch-size")
    add("--batch-size", type=int, help="pairs per optimizer step, 8 or 32")
    add("--most-ms", type=float, help="gate: mean step of warm ways, and ln 2 at the first")
    add("--max-length", type=int, default=1024, help="most tokens of prompt and completion")
    add("--precision", choices=PRECISIONS, help="bfloat16 on a GPU, else float32")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--no-allocator", action="store_true", help="let glibc give freed memory back, in all ways")
    add("--trl-path", help="folder that trl is installed in, if it is not in this environment")
    add("--micro-batch", type=int, default=1, help="pairs of a forward pass of the split ways")
    add("--profile", action="store_true", help="also write the ten most expensive operations")
    add("--seed", type=int, default=0, help="of weights and order")
    add("--out", type=Path, help="folder; outputs/benchmarks/<date>")
    given = parser.parse_args(arguments)
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, value in BY_DEVICE[given.device].items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    given.ways = [way for way in given.ways.split(",") if way]
    if given.through_trainer and "warm-trainer" not in given.ways:
        given.ways.append("warm-trainer")
    if problems := _problems(given):
        parser.error("; ".join(problems))
    given.precision = given.precision or ("bfloat16" if given.device == "cuda" else "float32")
    if given.warmup_pairs is None:
        given.warmup_pairs = given.batch_size
    return given


def _problems(given: argparse.Namespace) -> list[str]:
    found = [
        f"--{name.replace('_', '-')} is {getattr(given, name)}, but must be at least 1"
        for name in ("rounds", "pairs", "batch_size", "threads", "warmup_pairs")
        if (getattr(given, name) or 0) < 1 and getattr(given, name) is not None
    ]
    unknown = [way for way in given.ways if base_of(way) not in WAYS]
    if unknown or not given.ways:
        found.append(f"--ways: {', '.join(unknown) or 'none'}; there are {', '.join(WAYS)}")
    found += _variant_problems(given)
    found += _split_problems(given)
    if given.device == "cuda" and not torch.cuda.is_available():
        found.append("--device cuda: torch sees no GPU; use --device cpu")
    return found


def _variant_problems(given: argparse.Namespace) -> list[str]:
    """What follows a way and cannot be asked of it."""
    found = []
    for way in given.ways:
        variants = variants_of(way)
        if unknown := [variant for variant in variants if variant not in VARIANTS]:
            found.append(f"{way}: {', '.join(unknown)} is none of {', '.join(VARIANTS)}")
        elif len(set(variants) & set(PRECISIONS)) > 1 or len(set(variants)) < len(variants):
            found.append(f"{way}: one precision and one compile at most")
        elif "compile" in variants and base_of(way) == "notebook":
            found.append(f"{way}: the notebook compiles nothing")
    return found


def _split_problems(given: argparse.Namespace) -> list[str]:
    """Steps that cannot be cut into passes of as many pairs each."""
    if not any("split" in way for way in given.ways):
        return []
    micro, batch = given.micro_batch, given.batch_size
    if micro < 1 or batch % micro:
        return [f"--micro-batch {micro} must divide --batch-size {batch}"]
    passes, warmup = batch // micro, given.warmup_pairs or batch
    found = []
    if given.pairs % batch:
        found.append(f"--pairs {given.pairs} must be a multiple of --batch-size {batch}")
    if warmup % passes and passes % warmup:
        found.append(f"--warmup-pairs {warmup} must divide the {passes} passes of a step")
    return [f"{problem} for the split ways" for problem in found]


def requests(given: argparse.Namespace, workload: Workload, out: Path) -> list[Request]:
    """Every run, in order: round by round, each way once."""
    found = []
    for number in range(given.rounds):
        behind = given.warmup_steps * given.batch_size + given.pairs
        start = number * (given.warmup_pairs + behind)
        for way in given.ways:
            if way in map(warm_of, given.ways):
                continue
            own = [variant for variant in variants_of(way) if variant in PRECISIONS]
            wanted = given.profile and number == given.rounds - 1
            found.append(
                Request(
                    way=way,
                    model=workload.model,
                    tokenizer=workload.tokenizer,
                    store=workload.store,
                    warmup=workload.take(start, given.warmup_pairs),
                    rows=workload.take(start + given.warmup_pairs, behind),
                    untimed=given.warmup_steps,
                    round=number,
                    batch_size=given.batch_size,
                    max_length=given.max_length,
                    device=given.device,
                    precision=own[0] if own else given.precision,
                    threads=given.threads,
                    allocator=not given.no_allocator,
                    seed=given.seed,
                    matmul_size=1536 if given.device == "cpu" else 8192,
                    micro_batch=given.micro_batch,
                    profile=str(out / f"profile-{way}.txt") if wanted else "",
                )
            )
    return found


def run(request: Request, folder: Path, trl_path: str | None) -> list[Result]:
    """Measure in a process of its own; a cold way gives its warm one too.

    Raises:
        RuntimeError: It failed; with the end of what it wrote.
    """
    asked, answered = folder / "request.json", folder / "result.json"
    write(asked, request)
    answered.unlink(missing_ok=True)
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    if trl_path and request.way.startswith("trl"):
        # Last, so that what both hold is this environment's.
        paths.append(str(Path(trl_path).resolve()))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": str(request.threads),
        "MKL_NUM_THREADS": str(request.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        # No way gets cuDNN's attention, which plans for each new shape, half a second each.
        "TORCH_CUDNN_SDPA_DEPRIORITIZED": "1",
        # Transformers' trainer would spread a model over all that it sees.
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
    }
    command = [sys.executable, "-m", "speed.worker", str(asked), str(answered)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not answered.exists():
        told = (done.stderr or done.stdout)[-3000:]
        raise RuntimeError(f"{request.way}, round {request.round}: exit {done.returncode}\n{told}")
    return read_results(answered)


def environment(given: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on besides this project."""
    device = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        device = names[0] if names else device
    facts: dict[str, Any] = {}
    if given.device == "cuda":
        device = torch.cuda.get_device_name()
        facts = {**check_gpu.environment(torch.device("cuda")), "driver": _driver()}
    return {
        **facts,
        "device": device,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def _driver() -> str:
    """NVIDIA's, and the card's clocks, as its own program tells them."""
    asked = "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit"
    try:
        command = ["nvidia-smi", asked, "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"not told ({error})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; 1 if the ways do not agree on the first step."""
    given = parse(arguments)
    console = Console()
    console.width = max(console.width, 150)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out = given.out or Path("outputs") / "benchmarks" / stamp
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workload = prepare(
            given.model,
            given.tokenizer,
            given.data,
            max_length=given.max_length,
            seed=given.seed,
            folder=folder,
        )
        todo = requests(given, workload, out)
        timed = [row for r in todo if r.way == given.ways[0] for row in r.timed]
        line = describe(todo[0], workload.lengths[timed].tolist())
        console.print(line)
        results = []
        for request in todo:
            for result in run(request, folder, given.trl_path):
                if result.way in given.ways:
                    results.append(result)
                    console.print(_progress(result))
    return _report(console, given, line, results, out)


def _progress(result: Result) -> str:
    what = f"round {result.round}  {result.way:28}"
    if result.skipped:
        return f"{what}  skipped"
    return (
        f"{what}  {result.cpu_seconds / result.pairs:8.3f} CPU-s/pair"
        f"  {result.wall_seconds / result.pairs:8.3f} s/pair  load {result.load_average:.1f}"
    )


def _report(
    console: Console, given: argparse.Namespace, line: str, results: list[Result], out: Path
) -> int:
    summaries = summarise(results, given.device)
    wrong = disagreements(results)
    if given.most_ms is not None:
        wrong += missed(results, given.batch_size, given.most_ms)
    settings = {key: str(value) for key, value in vars(given).items()}
    written = {
        "settings": settings,
        "environment": environment(given),
        "workload": line,
        "summary": [asdict(row) for row in summaries],
        "disagreements": wrong,
        "skipped": skipped(results),
        "runs": [asdict(result) for result in results],
    }
    (out / "results.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    if summaries:
        title = f"{Path(given.model).name}, {given.precision}, {environment(given)['device']}"
        if importlib.util.find_spec("matplotlib") is None:
            console.print("no picture: matplotlib is missing (pip install 'minimind-dpo[bench]')")
        else:
            from speed.plot import draw

            draw(summaries, given.device, title, out / "throughput.png")
        console.print(speed_table(summaries, given.device))
        if compared := ratio_table(results, given.device):
            console.print(compared)
    for message in (*skipped(results), *wrong):
        console.print(message, style="red" if message in wrong else "yellow", markup=False)
    console.print(f"written to {out}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
