"""What to do when a run does not fit: the knobs that help, most helpful first."""

from __future__ import annotations

import torch

from minimind_dpo.config.schema import Config
from minimind_dpo.os_errors import causes
from minimind_dpo.run.batch_size import pairs_at_a_time

_CPU_WORDS = ("can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a failed allocation on a GPU or in main memory."""
    return any(
        isinstance(cause, torch.OutOfMemoryError | MemoryError)
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _CPU_WORDS))
        for cause in causes(error)
    )


def memory_advice(config: Config) -> str:
    """Overrides that save memory and are not in use, most helpful first."""
    data, trainer = config.data, config.trainer
    pairs = pairs_at_a_time(config)
    smaller = max(1, pairs // 2)
    accumulate = data.pairs * trainer.accumulate_grad_batches // smaller
    knobs: list[tuple[bool, str, str]] = [
        (data.layout == "padded", "data.layout=prefix_shared", "runs no padding, and prompts once"),
        (
            pairs > 1,
            f"data.batch_size={smaller} trainer.accumulate_grad_batches={accumulate}",
            "the same optimizer steps from smaller batches",
        ),
        (
            trainer.precision in ("32-true", "64-true"),
            "trainer.precision=bf16-mixed",
            "activations in half the memory",
        ),
        (
            not config.model.gradient_checkpointing,
            "model.gradient_checkpointing=true",
            "recomputes activations, for a third more time",
        ),
        (
            config.reference.mode == "online",
            "reference.mode=precomputed",
            "frees the reference before training",
        ),
        (True, f"data.max_length={max(2, data.max_length // 2)}", "cuts the longest pairs"),
        (config.model.lora.r == 0, "model.lora.r=16", "no optimizer state for the frozen weights"),
    ]
    rows = [f"  {override:<60} {why}" for useful, override, why in knobs if useful]
    return "Out of memory. What helps, most helpful first:\n" + "\n".join(rows)
