"""The embedded default: a tiny model, its data, and its judge; `tools/demo` made them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

ASSETS: Final = Path(__file__).resolve().parent / "assets"
MODEL: Final = ASSETS / "full_sft_128.pth"
TOKENIZER: Final = ASSETS / "tokenizer"
PREFERENCES: Final = ASSETS / "preferences.jsonl"
HELD_OUT: Final = ASSETS / "heldout.jsonl"
QUESTIONS: Final = ASSETS / "questions.jsonl"
