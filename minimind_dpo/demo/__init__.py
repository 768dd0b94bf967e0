"""The embedded default: a tiny model, its data, its judge, and the script that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ASSETS: Final = Path(__file__).resolve().parent / "assets"
MODEL: Final = ASSETS / "full_sft_128.pth"
TOKENIZER: Final = ASSETS / "tokenizer"
PREFERENCES: Final = ASSETS / "preferences.jsonl"
HELD_OUT: Final = ASSETS / "heldout.jsonl"
