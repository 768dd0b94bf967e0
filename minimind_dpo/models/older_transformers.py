"""Let transformers 4 read an exported folder as well: MiniMind's own scripts are written for it.

transformers 5 writes what 4 does not know, and 4 does not complain: it takes 10,000 for the base of
the rotary positions and 128 for the number of experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from transformers import PreTrainedConfig

_FAST: Final = {"TokenizersBackend", "PreTrainedTokenizerFast"}
_OF_LOADING: Final = ("is_local", "local_files_only")
"""How the tokenizer was loaded here; no business of whoever loads it next."""


def add_older_names(folder: Path, config: PreTrainedConfig) -> None:
    """Write fields of `config.json` and `tokenizer_config.json` under their older names too.

    Args:
        folder: As transformers 5 wrote it.
        config: The model's configuration.
    """
    path = folder / "config.json"
    fields = read_json(path)
    rope = fields.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        fields["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type") != "default":
            fields["rope_scaling"] = {name: rope[name] for name in rope if name != "rope_theta"}
    for name, own_name in config.attribute_map.items():
        if own_name in fields and name.startswith("num_"):
            fields.setdefault(name, fields[own_name])
    write_json(path, fields)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = read_json(path)
        for name in _OF_LOADING:
            settings.pop(name, None)
        if settings.get("tokenizer_class") in _FAST:
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"
            if isinstance(settings.get("extra_special_tokens"), list):
                settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        write_json(path, settings)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a file of settings."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Settings as transformers writes them, in the order given."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
