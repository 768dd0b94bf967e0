"""Choices and ranges of single keys, as tables, and the forms that several checks share."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from minimind_dpo.config.compose import Problem, nearest
from minimind_dpo.config.schema import Config
from minimind_dpo.kernels.cpu_matmul import LIBRARIES

HALF: Final = "updates of DPO's size vanish in half-precision weights"

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "log_level": ("debug", "info", "warning", "error"),
    "export.which": ("last", "best"),
    "model.matmul_precision": ("highest", "high", "medium"),
    "model.matmul_library": LIBRARIES,
    "data.layout": ("prefix_shared", "packed", "padded"),
    "data.chat_template": ("auto", "none"),
    "data.empty_think": ("keep", "remove"),
    "data.on_error": ("stop", "skip"),
    "schedule.name": ("cosine", "linear", "constant", "notebook"),
    "reference.mode": ("precomputed", "online", "none"),
    "reference.dtype": ("float32", "float64", "bfloat16", "float16"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.gradient_clip_algorithm": ("norm", "value"),
    "trainer.profiler": ("simple", "advanced", "pytorch", "xla"),
    "logger.name": ("tensorboard", "csv", "wandb", "swanlab", "none"),
    "callbacks.checkpoint.mode": ("min", "max"),
    "callbacks.progress": ("auto", "rich", "plain", "none"),
    "callbacks.judge": ("none", "demo"),
}


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, the ends included unless `open_*`; never NaN or infinite."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: Any) -> bool:
        if not is_number(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:,.0f}"
        high = f" and {'below' if self.open_high else 'at most'} {self.high:,.0f}"
        return low if self.high == math.inf else low + high


_COUNT: Final = Range(1)
_NOT_NEGATIVE: Final = Range(0)
SHARE: Final = Range(0, 1, open_high=True)
_POSITIVE: Final = Range(0, open_low=True)

# Values of `loss` are judged by the objective itself.
_RANGES: Final[dict[str, Range]] = {
    "seed": Range(0, 2**32 - 1),
    "sweep.jobs": _COUNT,
    "threads": _COUNT,
    "model.dropout": SHARE,
    "model.lora.r": _NOT_NEGATIVE,
    "model.lora.alpha": _POSITIVE,
    "model.lora.dropout": SHARE,
    "data.val_fraction": SHARE,
    "data.batch_size": _COUNT,
    "data.max_tokens_per_batch": _COUNT,
    "data.max_length": Range(2),
    "data.max_prompt_length": _COUNT,
    "data.max_completion_length": _COUNT,
    "data.num_workers": _NOT_NEGATIVE,
    "data.tokenize_workers": _COUNT,
    "loss.aux_coef": _NOT_NEGATIVE,
    "optim.lr": _POSITIVE,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "schedule.warmup_steps": _NOT_NEGATIVE,
    "schedule.warmup_ratio": SHARE,
    "schedule.min_lr_ratio": Range(0, 1),
    "reference.batch_tokens": _COUNT,
    "trainer.num_nodes": _COUNT,
    "trainer.max_epochs": Range(-1),
    "trainer.min_epochs": _NOT_NEGATIVE,
    "trainer.max_steps": Range(-1),
    "trainer.min_steps": _NOT_NEGATIVE,
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.num_sanity_val_steps": Range(-1),
    "trainer.log_every_n_steps": _COUNT,
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.gradient_clip_val": _NOT_NEGATIVE,
    "callbacks.checkpoint.every_n_steps": _NOT_NEGATIVE,
    "callbacks.checkpoint.save_top_k": Range(-1),
    "callbacks.samples.max_new_tokens": _COUNT,
    "callbacks.samples.temperature": _NOT_NEGATIVE,
    "callbacks.micro_batches.log_every": _NOT_NEGATIVE,
    "callbacks.micro_batches.export_every": _NOT_NEGATIVE,
    "guard.max_bad_steps": _COUNT,
    "guard.rank_timeout": _POSITIVE,
    "guard.stop_grace": _NOT_NEGATIVE,
}


def choice_problems(config: Config) -> Iterator[Problem]:
    """Keys whose value is none of their choices; null is one where the schema allows it."""
    for key, choices in _CHOICES.items():
        value = value_at(config, key)
        if value is not None and value not in choices:
            yield choice_problem(key, value, choices)


def range_problems(config: Config) -> Iterator[Problem]:
    """Numbers out of range, NaN and infinity among them."""
    for key, allowed in _RANGES.items():
        value = value_at(config, key)
        if value is not None and value not in allowed:
            yield Problem(key, f"must be {allowed}", value=value)


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key, `loss.beta`."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def choice_problem(key: str, value: Any, choices: tuple[str, ...]) -> Problem:
    """`value` is none of the choices; the nearest is offered."""
    near = nearest(str(value), choices)
    fix = f"Did you mean {near}?" if near else ""
    return Problem(key, f"must be one of {', '.join(choices)}", fix, value)


def package_problems(key: str, value: Any, package: str, extra: str) -> Iterator[Problem]:
    """An optional package that `value` needs is not installed."""
    if importlib.util.find_spec(package) is None:
        fix = f"Install it: pip install 'minimind-dpo[{extra}]'"
        yield Problem(key, f"needs the package {package}", fix, value)


def is_number(value: Any) -> bool:
    """A finite number that is not a boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_word(value: Any) -> bool:
    """A string that is not empty."""
    return isinstance(value, str) and bool(value)
