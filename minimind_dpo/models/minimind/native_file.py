"""Reading the tensors of a native file without trusting it.

A flipped bit would load silently, so the checksums of torch's zip format are checked first.
Unpickling is torch's weights-only loader's.
"""

from __future__ import annotations

import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind_dpo.checksums import zip_fault
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.os_errors import first_line

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_RESUME_ENTRIES = {"model", "optimizer", "epoch", "step"}
"""Of the file that MiniMind's scripts resume from, `full_sft_768_resume.pth`."""


def dtype_name(dtype: torch.dtype) -> str:
    """`float16` for torch.float16."""
    return str(dtype).removeprefix("torch.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a native file, on the CPU, as stored; mapped into memory where possible.

    Of a file to resume from (`full_sft_768_resume.pth`) it is the model's entry.

    Raises:
        CheckpointError: The file is empty, damaged, not torch's, or not a plain dict of floating
            point tensors.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again")
    _check_sums(path)
    try:
        # torch maps files of its zip format only; older ones are read.
        is_zip = zipfile.is_zipfile(path)
        with warnings.catch_warnings():  # about pickles of a sort that is refused anyway
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged pickle raises nearly anything
        if "weights_only" in str(error) or "Unsupported" in str(error):
            reason = (
                "it is not a torch file of plain weights: it is something else, or holds Python "
                "objects, which are not loaded because that can run code"
            )
        else:
            reason = f"it is not a whole torch file ({first_line(error)})"
        raise CheckpointError(
            f"{path} cannot be read: {reason}. Give the file that torch.save wrote of a model's "
            "state_dict()"
        ) from error
    return _checked(content, path)


def _check_sums(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(b"PK"):
        return
    fault = zip_fault(path)
    if fault is not None:
        raise CheckpointError(
            f"{path} is damaged: {fault}. Copy or download it again, and compare sizes or checksums"
        )


def _checked(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping) or not content:
        held = "an empty dict" if isinstance(content, Mapping) else f"a {type(content).__name__}"
        raise CheckpointError(
            f"{path} holds {held}, not a state dict (names of tensors and tensors)"
        )
    if content.keys() >= _RESUME_ENTRIES and isinstance(content["model"], Mapping):
        return check_tensors(content["model"], path)
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        inner = [key for key in others if isinstance(content[key], Mapping)]
        hint = (
            f" It looks like a training checkpoint; save its entry {inner[0]!r} to a file of its "
            "own if that is the model"
            if inner
            else ""
        )
        raise CheckpointError(
            f"{path} is not a dict of tensors: {', '.join(map(repr, others[:5]))} "
            f"({type(content[others[0]]).__name__}) is none.{hint}"
        )
    return check_tensors(content, path)


def check_tensors(tensors: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Refuse what is no plain tensor of weights, naming the first; no number is read for it."""
    for key, tensor in tensors.items():
        fault = _fault(key, tensor)
        if fault is not None:
            raise CheckpointError(
                f"{path}: {str(key)[:100]!r} is {fault}; weights must be dense tensors of "
                f"{', '.join(map(dtype_name, _DTYPES))}, by name. Quantised models cannot be "
                "trained"
            )
    return dict(tensors)


def _fault(key: Any, tensor: Any) -> str | None:
    """What is wrong with an entry of a state dict; None for a plain tensor of weights."""
    if not isinstance(key, str) or not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__} under a key of type {type(key).__name__}"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
        return f"{tensor.dtype} ({'nested' if tensor.is_nested else tensor.layout})"
    if tensor.device.type != "cpu":
        return f"on the device {tensor.device.type}, so its numbers are not in the file"
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        return f"of shape {tuple(tensor.shape)}, more numbers than the file holds for it"
    return None


def main_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The number format of most numbers; None where there are none."""
    counts: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype], default=None)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are NaN or infinite, naming the first of them."""
    # NOTE: a sum is infinite or NaN wherever a member is, and is much cheaper than isfinite;
    # it can overflow in half precision, so only then is each element looked at.
    bad = [key for key, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise CheckpointError(
            f"{where}: {len(bad)} tensor(s) hold NaN or infinite numbers: {', '.join(bad[:5])}. "
            "The training that wrote it diverged, or the file is damaged; use an earlier one"
        )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype == torch.float4_e2m1fn_x2:
        return True  # has no code for NaN or infinity
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()  # torch does not add numbers of 8 bits
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())
