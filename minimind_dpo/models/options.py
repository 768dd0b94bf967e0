"""What a user may set about the policy: one field for each key `model.*`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from minimind_dpo.kernels.options import LIBRARIES
from minimind_dpo.models.locate import (
    HUB_NAME,
    MODEL_FILES,
    MODELSCOPE,
    TOKENIZER_FILES,
    WEIGHT_SUFFIXES,
)
from minimind_dpo.options.limits import (
    AUTO_OR_SWITCH,
    MISSING,
    POSITIVE,
    SHARE,
    Choices,
    Form,
    Range,
    is_word,
)
from minimind_dpo.options.problem import Problem, missing_file, package_problems

HALF: Final = "updates of DPO's size vanish in half-precision weights"
"""Why weights that are trained are never of a half type."""
_HALF: Final = (HALF, "For speed use trainer.precision=bf16-mixed.")


def _names_layers(value: Any) -> bool:
    listed = isinstance(value, list) and bool(value) and all(map(is_word, value))
    return is_word(value) or listed


@dataclass
class LoraOptions:
    """Low-rank adapters; r = 0 trains every weight. `conf/model` says what each key means."""

    r: Annotated[int, Range(0, 65536)] = 0
    alpha: Annotated[float, POSITIVE] = 32.0
    dropout: Annotated[float, SHARE] = 0.0
    target_modules: Annotated[
        Any, Form(_names_layers, "all-linear, a layer's name, or a list of names")
    ] = "all-linear"


@dataclass
class ModelOptions:
    """The policy: where it is, and how it is loaded and run."""

    path: str = MISSING
    tokenizer: str | None = None
    adapters: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    dtype: Annotated[
        str, Choices("float32", "float64", refused=dict.fromkeys(("bfloat16", "float16"), _HALF))
    ] = "float32"
    dropout: Annotated[float, SHARE] = 0.0
    gradient_checkpointing: bool = False
    compile: Annotated[Any, AUTO_OR_SWITCH] = "auto"
    matmul_precision: Annotated[str, Choices("highest", "high", "medium")] = "highest"
    matmul_library: Annotated[str, Choices(*LIBRARIES)] = "auto"
    trust_remote_code: bool = False
    lora: LoraOptions = field(default_factory=LoraOptions)


def model_problems(options: ModelOptions) -> Iterator[Problem]:
    """A policy, tokenizer or package that is not there."""
    if not options.path:
        example = "python -m minimind_dpo.train model.path=full_sft_768.pth data.train=dpo.jsonl"
        yield Problem("model.path", "is missing: it names what to train", f"For example: {example}")
    else:
        yield from path_problems("model.path", options.path)
    if options.tokenizer is not None:
        yield from path_problems("model.tokenizer", options.tokenizer)
    if options.lora.r > 0:
        yield from package_problems("model.lora.r", options.lora.r, "peft", "lora")


def path_problems(key: str, value: str) -> Iterator[Problem]:
    """Neither a file, nor a folder with a config or tokenizer, nor a possible name on a hub."""
    path = Path(os.path.expanduser(value))
    if value.startswith(MODELSCOPE):
        yield from package_problems(key, value, "modelscope", "modelscope")
    elif os.path.isdir(path):
        expected = TOKENIZER_FILES if key == "model.tokenizer" else MODEL_FILES
        if not any((path / name).is_file() for name in expected):
            inside = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_SUFFIXES)
            fix = f"Name the file: {key}={path / inside[0]}" if inside else ""
            yield Problem(key, f"is a folder without {' or '.join(expected)}", fix, value)
    elif os.path.isfile(path):
        if path.stat().st_size == 0:
            yield Problem(key, "is an empty file", value=value)
    elif not HUB_NAME.fullmatch(value) or path.suffix in WEIGHT_SUFFIXES:
        yield missing_file(key, value, path)
