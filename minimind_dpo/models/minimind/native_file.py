"""Where a model comes from, and reading the tensors of a native file without trusting it.

A flipped bit would load silently, so the checksums of torch's zip format are checked first.
Unpickling is torch's weights-only loader's.
"""

from __future__ import annotations

import difflib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind_dpo.disk import zip_fault
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.find_on_hub import find_on_hub
from minimind_dpo.os_errors import first_line

_WEIGHT_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")
_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
MODELSCOPE = "modelscope:"


def locate(path: str | Path, key: str = "model.path") -> Path | str:
    """An existing file or folder, or the name of a model on a hub that can be reached.

    Args:
        path: What the user gave; `modelscope:NAME` is fetched from there into its cache.
        key: The configuration key it came from, for messages.

    Raises:
        CheckpointError: It looks like a local path and does not exist (near matches are listed),
            or is no hub name either, or neither the hub nor its cache can be asked.
    """
    text = str(path)
    if text.startswith(MODELSCOPE):
        return _from_modelscope(text.removeprefix(MODELSCOPE), key)
    local = Path(text).expanduser()
    if text and local.exists():
        return local
    if isinstance(path, Path) or _looks_local(text) or not _HUB_NAME.fullmatch(text):
        raise CheckpointError(f"{key}={text}: no such file or folder. {_near_matches(local)}")
    return find_on_hub(text, key)


def _looks_local(text: str) -> bool:
    first = re.split(r"[/\\]", text)[0]
    return (
        text.startswith(("/", "./", "../", "~", "."))
        or "\\" in text
        or text.lower().endswith(_WEIGHT_SUFFIXES)
        or text.count("/") > 1
        or ("/" in text and Path(first).is_dir())
    )


def _near_matches(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist either; paths are taken from {Path.cwd()}"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.4)
    if near:
        return f"In {folder.resolve()} there is: {', '.join(near)}"
    return f"The folder {folder.resolve()} holds nothing of a like name"


def _from_modelscope(name: str, key: str) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{key}={MODELSCOPE}{name} needs the modelscope package: "
            "pip install minimind-dpo[modelscope]"
        ) from error
    try:
        return Path(snapshot_download(name))
    except Exception as error:  # its client raises types of its own for every failure
        raise CheckpointError(
            f"{key}={MODELSCOPE}{name} could not be fetched: {error}. Check the name and the "
            "network, or give a local folder"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a native file, on the CPU, as stored; mapped into memory where possible.

    Raises:
        CheckpointError: The file is empty, damaged, not torch's, or not a plain dict of floating
            point tensors.
    """
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again")
    _check_sums(path)
    try:
        # torch maps files of its zip format only; older ones are read.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():  # about pickles of a sort that is refused anyway
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
    return _checked(loaded, path)


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


def _checked(loaded: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        held = "an empty dict" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise CheckpointError(
            f"{path} holds {held}, not a state dict (names of tensors and tensors)"
        )
    others = [key for key, value in loaded.items() if not isinstance(value, Tensor)]
    if others:
        inner = [key for key in others if isinstance(loaded[key], Mapping)]
        hint = (
            f" It looks like a training checkpoint; save its entry {inner[0]!r} to a file of its "
            "own if that is the model"
            if inner
            else ""
        )
        raise CheckpointError(
            f"{path} is not a dict of tensors: {', '.join(map(repr, others[:5]))} "
            f"({type(loaded[others[0]]).__name__}) is none.{hint}"
        )
    for key, tensor in loaded.items():
        if not isinstance(key, str) or not tensor.is_floating_point() or tensor.is_sparse:
            raise CheckpointError(
                f"{path}: {key!r} is {tensor.dtype} ({tensor.layout}); weights must be dense and "
                "float32, float16 or bfloat16. Quantised models cannot be trained"
            )
    return dict(loaded)


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Raises:
        CheckpointError: Names the first of them.
    """
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
