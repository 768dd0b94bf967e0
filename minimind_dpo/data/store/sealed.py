"""Arrays in one safetensors file that is whole under its name, and in which no changed byte passes.

safetensors has no checksums, so the header keeps a SHA-256 over all arrays and what is said of
them. Nothing is pickled; arrays are mapped into memory, not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from minimind_dpo.disk import replacing
from minimind_dpo.os_errors import explain

_ABOUT, _SEAL = "about", "sha256"


class DamagedFileError(ValueError):
    """A file that is not what was written; it can be made again."""


def write_sealed(path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Write a file whole or not at all.

    Args:
        path: Its place; its folder is made.
        arrays: Contiguous arrays by name.
        about: Plain values to keep in the header.
    """
    text = json.dumps(about)
    with replacing(path) as temporary:
        save_file(dict(arrays), temporary, {_ABOUT: text, _SEAL: _seal(arrays, text)})


def read_sealed(path: Path, verify: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, mapped, and the plain values of its header.

    Args:
        path: The file.
        verify: Compare every byte with the checksum; without it, sizes alone.

    Raises:
        DamagedFileError: Naming the file and what is wrong with it.
        OSError: It is not there, or cannot be opened.
    """
    path.open("rb").close()  # the library's own errors name no file
    try:
        # NOTE: of safetensors' frameworks only torch maps a file; the others copy it.
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            text, seal = header[_ABOUT], header[_SEAL]
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
        about = json.loads(text)
    except KeyError as error:
        raise DamagedFileError(f"{path}: its header has no entry {error}") from error
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        if explain(error) is not None:
            raise  # says nothing of what the file holds
        raise DamagedFileError(f"{path}: {error}") from error
    if verify and _seal(arrays, text) != seal:
        raise DamagedFileError(f"{path}: its content is not what was written")
    return arrays, about


def _seal(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
