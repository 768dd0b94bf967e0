"""Which MiniMind generation a native file belongs to, and what each generation is like.

A native file is a bare state dict. Its keys tell the generation, by the `marks` in `generations`;
v1 and v2a, whose keys are the same, are told apart by the rows of wk to those of wq, 1:2 and 1:4.
`.experts.` in a key is a mixture of experts (`_moe`).

Every generation but v_learn is one of transformers' own classes under other names; `state_dict`
does the renaming, `architecture` finds the sizes. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.minimind.folder import FolderForm
from minimind_dpo.models.minimind.generations import GENERATIONS, Generation
from minimind_dpo.models.minimind.native_file import dtype_name

_PARTS_OF_OTHERS = {
    "speech": "talker.",
    "images": "vision_proj.",
    "their encoder": "vision_encoder.",
    "adapters": ".lora.",
}
"""A part of the keys of files that are no model of text."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a checkpoint was recognised as, and what writing it back in its own form needs.

    Attributes:
        name: `v_learn`, `v1`, `v2a`, `v2`, `v3`, with `_moe` for a mixture of experts; `hf` for
            what came as a transformers folder or hub name.
        class_name: transformers class of the model.
        num_parameters: Parameters, tied ones counted once.
        file_dtype: Number format of the weights as stored; None where the source does not say.
        fields: Architecture of a native file by our names (those of transformers).
        keys: Keys of the native file, in its order; empty for `hf`.
        prefix: What wrapped every key (`module.` of data-parallel runs), kept for the way back.
        mask_fill: Value above the diagonal of v_learn's stored masks.
        form: What a folder in MiniMind's own form has beside its weights; None for a native file.
    """

    name: str
    class_name: str
    num_parameters: int
    file_dtype: torch.dtype | None
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keys: tuple[str, ...] = field(default=(), repr=False)
    prefix: str = ""
    mask_fill: float = float("-inf")
    form: FolderForm | None = None

    @property
    def moe(self) -> bool:
        """Whether a native file holds a mixture of experts."""
        return self.name.endswith("_moe")

    @property
    def generation(self) -> Generation | None:
        """The generation of a native file; None for `hf`."""
        return GENERATIONS.get(self.name.removesuffix("_moe"))

    def describe(self) -> str:
        """One line for the log: generation, class, parameters in millions, file dtype."""
        generation = self.generation
        title = "Hugging Face model" if generation is None else generation.title
        if self.moe:
            title += " mixture of experts"
        if self.form is not None:
            title += " in a folder of its own form"
        stored = "of unknown dtype" if self.file_dtype is None else dtype_name(self.file_dtype)
        return (
            f"{title} ({self.name}): {self.class_name}, "
            f"{self.num_parameters / 1e6:.3f}M parameters, file {stored}"
        )


def common_prefix(keys: Iterable[str]) -> str:
    """`module.` or `_orig_mod.` (or both) where every key carries it."""
    keys = list(keys)
    prefix = ""
    for _ in range(2):
        for wrapper in ("module.", "_orig_mod."):
            if keys and all(key.startswith(prefix + wrapper) for key in keys):
                prefix += wrapper
    return prefix


def recognise(shapes: Mapping[str, torch.Size], name: str | None = None) -> tuple[Generation, bool]:
    """Generation of a state dict, and whether it is a mixture of experts.

    Args:
        shapes: Shape of each tensor, by key without wrapper prefix.
        name: Generation that the user named, where v1 and v2a cannot be told apart.

    Raises:
        CheckpointError: The keys belong to no generation, or not to the named one.
    """
    _refuse_others(shapes)
    moe = any(".experts." in key for key in shapes)
    candidates = [each.name for each in GENERATIONS.values() if _is_of(each, shapes)]
    if not candidates:
        first = ", ".join(list(shapes)[:4])
        marks = "; ".join(f"{' and '.join(g.marks)} ({g.name})" for g in GENERATIONS.values())
        raise CheckpointError(
            f"no MiniMind generation has these keys: {first}, ... ({len(shapes)} in all). "
            f"Known ones hold {marks}. Give model.path a full model's native file, or a "
            "Hugging Face folder"
        )
    if name is not None:
        if name not in candidates:
            raise CheckpointError(
                f"model.config.generation={name}, but the keys of this file are those "
                f"of {' or '.join(candidates)}. Leave the override out"
            )
        return GENERATIONS[name], moe
    if len(candidates) == 1:
        return GENERATIONS[candidates[0]], moe
    return GENERATIONS[_v1_or_v2a(shapes)], moe


def _is_of(generation: Generation, keys: Iterable[str]) -> bool:
    """Whether a state dict has the keys that tell a generation, and none that rule it out."""
    keys = list(keys)

    def in_keys(mark: str) -> bool:
        return any(mark in key if mark.startswith(".") else key.startswith(mark) for key in keys)

    return all(map(in_keys, generation.marks)) and not any(map(in_keys, generation.absent))


def _refuse_others(keys: Iterable[str]) -> None:
    """Name the files of MiniMind's family that hold more or less than a model of text."""
    keys = list(keys)
    kinds = {kind for kind, part in _PARTS_OF_OTHERS.items() if any(part in key for key in keys)}
    if "speech" in kinds:
        what = "a model of speech and text (minimind-o)"
    elif kinds & {"images", "their encoder"}:
        what = "a model of images and text (minimind-v)"
    elif "adapters" not in kinds:
        return
    elif all(".lora." in key for key in keys):
        raise CheckpointError(
            "it holds LoRA adapters alone. Give model.path the model that they were trained on, "
            "and model.adapters this file"
        )
    else:
        raise CheckpointError(
            "it holds LoRA adapters between the weights of a model. Give model.path the model "
            "without them, and model.adapters the file of the adapters (lora_*.pth)"
        )
    raise CheckpointError(f"it holds {what}. Only models of text alone can be trained here")


def _v1_or_v2a(shapes: Mapping[str, torch.Size]) -> str:
    layer = "layers.0.attention."
    query, key = (shapes.get(f"{layer}{name}.weight", (0,))[0] for name in ("wq", "wk"))
    ratio = query / key if key else 0
    if ratio not in (2, 4):
        raise CheckpointError(
            f"tok_embeddings says v1 or v2a, which have 1 key row to 2 or 4 query rows, "
            f"but {layer}wk has {key} and wq has {query}. Say which it is with "
            "model.config.generation=v1 or v2a"
        )
    return "v1" if ratio == 2 else "v2a"
