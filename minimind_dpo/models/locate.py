"""Where a model is: a file or folder, a run's folder, or a name on a hub. Nothing of it is loaded.

RUN              its exported model, RUN/export
RUN/adapters     adapters, and the model that they belong to (`base_of`)
modelscope:NAME  fetched from there into its cache
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from minimind_dpo.disk import read_object
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.options.problem import missing_file

WEIGHT_SUFFIXES: Final = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".gguf")
HUB_NAME: Final = re.compile(
    r"(?!.*(?:--|\.\.|\.git$))(?=.{1,96}$)\w(?:[\w.-]*\w)?(?:/\w(?:[\w.-]*\w)?)?", re.ASCII
)
"""What a hub takes for a name: `gpt2`, `jingyaogong/MiniMind2`."""
MODELSCOPE: Final = "modelscope:"
MODEL_FILES: Final = ("config.json", "adapter_config.json", "config.yaml")
"""One of them makes a folder a model, adapters or a run."""
TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "vocab.json"),
)
EXPORT: Final = "export"
"""Folder of a run that holds the exported model."""
ADAPTERS: Final = "adapters"
"""Folder of a run that holds its adapters alone."""
BASE: Final = "base"
"""Folder beside adapters that holds their model, where no other place does."""
_SETTINGS: Final = "adapter_config.json"


def locate(path: str | Path, key: str = "model.path") -> Path | str:
    """An existing file or folder, or the name of a model on a hub that can be reached.

    Args:
        path: What the user gave.
        key: The configuration key it came from, for messages.

    Raises:
        CheckpointError: It looks like a local path and does not exist (the nearest is named),
            or is no hub name either, or neither the hub nor its cache can be asked; or it is a
            run's folder without an exported model.
    """
    text = str(path)
    if text.startswith(MODELSCOPE):
        return _from_modelscope(text.removeprefix(MODELSCOPE), key)
    local = Path(text).expanduser()
    if text and os.path.exists(local):  # which takes a name that is too long
        return _usable(local, key)
    if isinstance(path, Path) or _looks_local(text) or not HUB_NAME.fullmatch(text):
        raise CheckpointError(str(missing_file(key, text, local)))
    from minimind_dpo.models.find_on_hub import find_on_hub  # takes a while to import

    return find_on_hub(text, key)


def _usable(path: Path, key: str) -> Path:
    """The path itself; of a run's folder, what it has exported."""
    if path.is_file() and _is_gguf(path):
        raise CheckpointError(
            f"{key}={path} is a GGUF file, which is made for llama.cpp: its weights are mostly "
            "quantised, and its tokenizer is not stored whole, so it cannot be trained. Give "
            f"{key} the checkpoint that it was converted from: a .pth file or a Hugging Face folder"
        )
    if not (path / "config.yaml").is_file() or (path / "config.json").is_file():
        return path
    folder = path / EXPORT
    if (folder / "config.json").is_file():
        return folder
    native = sorted(folder.glob("*.pth"))
    if len(native) != 1:
        raise CheckpointError(
            f"{key}={path} is the folder of a run that has exported no model yet. Finish it with "
            f"resume=auto run_dir={path}, or give {key} another model"
        )
    return native[0]


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def holds_adapters(source: Path | str) -> bool:
    """Whether a path is a folder of adapters alone, as peft writes it."""
    return (
        isinstance(source, Path)
        and os.path.isfile(source / _SETTINGS)
        and not os.path.isfile(source / "config.json")
    )


def base_of(adapters: Path, key: str = "model.path") -> str:
    """The model that a folder of adapters belongs to, as `locate` takes it.

    Raises:
        CheckpointError: The folder does not say.
    """
    if (adapters / BASE / "config.json").is_file():
        return str(adapters / BASE)  # also where the run's folder has been moved
    base = read_object(adapters / _SETTINGS).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{key}={adapters} holds adapters, but its {_SETTINGS} does not say which model they "
            f"belong to. Give {key} that model, and model.adapters={adapters}"
        )
    return base


def with_base(
    path: str | Path, adapters: str | Path | None, key: str = "model.path"
) -> tuple[Path | str, Path | None]:
    """Where a model is, and the adapters to add to it.

    Args:
        path: The model; a folder of adapters stands for the model they belong to.
        adapters: Adapters that were named beside it: a folder, or a file of MiniMind's own.
        key: The configuration key that names the path, for messages.

    Raises:
        CheckpointError: As `locate`; or there are adapters twice, or none where they are named.
    """
    source = locate(path, key)
    if holds_adapters(source):
        assert isinstance(source, Path)
        if adapters is not None:
            raise CheckpointError(
                f"{key}={path} holds adapters, and model.adapters={adapters} names others. Name "
                f"one of them, and the model itself as {key}"
            )
        return locate(base_of(source, key), key), source
    if adapters is None:
        return source, None
    place = Path(adapters).expanduser()
    if not os.path.isfile(place) and not holds_adapters(place):
        raise CheckpointError(
            f"model.adapters={adapters!s:.100} is neither a folder with {_SETTINGS}, as peft "
            f"writes it, nor a file of MiniMind's own (lora_*.pth)"
        )
    return source, place


def model_files(path: str | Path, adapters: str | Path | None = None) -> list[Path]:
    """The files that decide what a model computes, adapters among them; none of a hub's model.

    Raises:
        CheckpointError: As `with_base`.
    """
    if not Path(path).expanduser().exists():
        return []
    files: list[Path] = []
    for place in with_base(path, adapters):
        if isinstance(place, Path) and place.is_dir():
            files_inside = (entry for entry in place.iterdir() if _decides(entry))
            files += sorted(files_inside)
        elif isinstance(place, Path):
            files.append(place)
    return files


def _decides(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES or path.name in ("config.json", _SETTINGS)


def _looks_local(text: str) -> bool:
    first = re.split(r"[/\\]", text)[0]
    return (
        text.startswith(("/", "./", "../", "~", "."))
        or "\\" in text
        or text.lower().endswith(WEIGHT_SUFFIXES)
        or text.count("/") > 1
        or ("/" in text and Path(first).is_dir())
    )


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
