"""The formula of `data.batch_size=auto` bounds what a forward pass on CUDA keeps, traced."""

from __future__ import annotations

from traced_support import needs_absent_device, traced

pytestmark = needs_absent_device


def test_the_formula_is_above_what_is_kept_and_not_far_above() -> None:
    ways = traced("traced_memory.py")
    assert len(ways) == 6
    head = 24 * 3200
    for way, (kept, formula) in ways.items():
        # Six blocks of the head's logits are alive besides; the embedding's output is not counted.
        assert kept < formula - head + 12 * 512, way
        # A checkpointed layer is computed again whole, which is not kept.
        again = 44 * 512 + 8 * 1408 if "checkpointing" in way else 0
        assert formula - head - again < 1.5 * kept, way
