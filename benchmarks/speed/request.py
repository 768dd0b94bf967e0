"""What is asked of one measuring process, and what it answers; both travel as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

WARM_OF = {
    "cold": "warm",
    "split-cold": "split-warm",
    "trl-cold": "trl-warm",
    "trl-split-cold": "trl-split-warm",
}
"""Ways that are measured with another: the steps of a cold run are a warm run."""

PRECISIONS = ("float32", "bfloat16", "float16")
VARIANTS = ("compile", *PRECISIONS)
"""What may follow a way behind a plus: compiled layers, and a precision of its own."""


def base_of(way: str) -> str:
    """A way without its variants: `warm` of `warm+compile`."""
    return way.split("+")[0]


def variants_of(way: str) -> list[str]:
    """What follows a way: `compile` and `bfloat16` of `warm+compile+bfloat16`."""
    return way.split("+")[1:]


def warm_of(way: str) -> str | None:
    """The way that is measured with this one, in the same variants."""
    warm = WARM_OF.get(base_of(way))
    return None if warm is None else "+".join((warm, *variants_of(way)))


class Skipped(Exception):  # noqa: N818 - not an error: the way cannot run here, and says why
    """A way that cannot run here; its message is the reason."""


@dataclass(frozen=True, slots=True)
class Request:
    """One way of training, measured once.

    Attributes:
        way: Name in `worker.WAYS`, and its variants.
        model: Native file or Hugging Face folder.
        tokenizer: Folder; only TRL's trainer asks for one, the pairs are tokens already.
        store: Folder of the token store.
        warmup: Rows of the store for the first step, which is not timed; its loss and gradient
            norm are reported, since there policy and reference are still the same.
        rows: Rows of the steps behind the first, in order; a row may come more than once.
        untimed: How many of these steps come before the clock starts: a GPU's clocks, its allocator
            and compiled layers settle in them.
        round: Which repetition this is.
        batch_size: Pairs per optimizer step.
        max_length: Longest prompt and completion; the notebook pads to it.
        batch_tokens: Most tokens of a forward pass of the reference ahead of training.
        device: `cpu` or `cuda`.
        precision: `float32`, or `bfloat16` or `float16` under autocast, the latter with a gradient
            scaler; weights are float32 in all.
        threads: CPU threads of torch.
        allocator: Keep freed memory (`minimind_dpo.kernels.keep_memory`).
        lr: Learning rate of AdamW.
        beta: DPO's beta.
        seed: Seed of torch.
        matmul_size: Edge of the square matrices that the device's own rate is taken with.
        micro_batch: Pairs of a forward pass of the `split` ways.
        profile: File for the ten most expensive operations of one more step; empty for none.
    """

    way: str
    model: str
    tokenizer: str
    store: str
    warmup: list[int]
    rows: list[int]
    untimed: int = 0
    round: int = 0
    batch_size: int = 8
    max_length: int = 1024
    batch_tokens: int = 16384
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    allocator: bool = True
    lr: float = 1e-6
    beta: float = 0.1
    seed: int = 0
    matmul_size: int = 1536
    micro_batch: int = 1
    profile: str = ""

    @property
    def batches(self) -> list[list[int]]:
        """Rows of each step behind the first."""
        starts = range(0, len(self.rows), self.batch_size)
        return [self.rows[start : start + self.batch_size] for start in starts]

    @property
    def timed(self) -> list[int]:
        """Rows of the steps that are timed."""
        return self.rows[self.untimed * self.batch_size :]

    @property
    def compiled(self) -> bool:
        """Whether the model's layers are compiled."""
        return "compile" in variants_of(self.way)


@dataclass(slots=True)
class Result:
    """What one measuring process found.

    Attributes:
        way: As asked.
        round: As asked.
        precision: As asked.
        skipped: Why the way could not run; empty if it did.
        pairs: Pairs of the timed steps.
        cpu_seconds: CPU time of this process, all threads, in the timed parts.
        wall_seconds: Time on the wall in the timed parts.
        pass_share: Share of the time (of the CPU on a CPU) that the reference pass ahead took.
        matmul_rates: FLOP/s of a plain matrix product, before and after each timed part.
        useful_flops: Arithmetic that DPO needs on these pairs.
        executed_flops: Arithmetic that this way did, its own repetitions included.
        real_tokens: Tokens of prompt + chosen and of prompt + rejected.
        tokens_run: Tokens that one forward pass of the policy ran, padding included.
        peak_bytes: Most memory: resident of the process, or allocated on the GPU.
        idle_bytes: The same before a model is loaded: this project's libraries.
        first_loss: Loss of the first step.
        first_grad_norm: Norm of its gradient before clipping.
        load_average: Of the last minute, at the end; 0 where the system has none.
    """

    way: str
    round: int
    precision: str = "float32"
    skipped: str = ""
    pairs: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    pass_share: float = 0.0
    matmul_rates: list[float] = field(default_factory=list)
    useful_flops: float = 0.0
    executed_flops: float = 0.0
    real_tokens: int = 0
    tokens_run: int = 0
    peak_bytes: int = 0
    idle_bytes: int = 0
    first_loss: float = 0.0
    first_grad_norm: float = 0.0
    load_average: float = 0.0


def write(path: Path, value: Request | list[Result]) -> None:
    """Write a request or its results."""
    plain = asdict(value) if isinstance(value, Request) else [asdict(result) for result in value]
    path.write_text(json.dumps(plain), encoding="utf-8")


def read_request(path: Path) -> Request:
    """What `write` wrote."""
    return Request(**json.loads(path.read_text(encoding="utf-8")))


def read_results(path: Path) -> list[Result]:
    """What `write` wrote."""
    return [Result(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]
