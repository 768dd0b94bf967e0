"""MiniMind's published tokenizers and texts, which are not part of this project.

They lie in a folder `shared` beside the checkout, or in the one that MINIMIND_DPO_SHARED names.
Where there is none, the tests that need them are not collected; the others need nothing of it.
"""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("MINIMIND_DPO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
TOKENIZERS = sorted(path.parent for path in SHARED.glob("tokenizers/*/tokenizer.json"))
