"""The files that hold a Hugging Face folder's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimind_dpo.disk import read_object
from minimind_dpo.models.errors import CheckpointError


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads; adapters and other copies may lie beside them.

    Returns:
        One `model.safetensors`, or the parts that its index names, or else the same of
        `pytorch_model.bin`; empty where there is none.

    Raises:
        CheckpointError: An index is not readable.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        single, index = folder / name, folder / f"{name}.index.json"
        if single.is_file():
            return [single]
        if index.is_file():
            return [folder / part for part in sorted(set(_parts(index)))]
    return []


def _parts(index: Path) -> list[str]:
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict):
        raise CheckpointError(
            f"{index} cannot be read, or does not name the parts of the weights (weight_map)"
        )
    return [str(name) for name in names.values()]


def stored_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of a safetensors file, one at a time.

    Raises:
        CheckpointError: The file is missing, damaged or cut short.
    """
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                yield key, file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Copy or download it again"
        ) from error
