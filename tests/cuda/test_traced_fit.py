"""`trainer.fit` on CUDA, traced without one: between logged steps the host never waits."""

from __future__ import annotations

from traced_support import needs_absent_device, traced

pytestmark = needs_absent_device

ASKED = [
    {"precision": "bf16-mixed", "accumulate": 2},
    {"precision": "16-mixed", "accumulate": 1},
    {"precision": "16-mixed", "accumulate": 2},
]


def test_an_optimizer_step_never_waits_for_the_device_unless_it_is_logged() -> None:
    """Reads of device values and copies that block; guard, metrics, clipping, scaler, callbacks."""
    answers = traced("traced_fit.py", ASKED)
    for asked, waits in zip(ASKED, answers, strict=True):
        # Step 0 is what happens before the first one. The trace does see waits: a logged step has.
        assert waits.keys() == {str(step) for step in range(7)}, asked
        assert all(waits[step] for step in ("1", "5", "6")), asked
        assert {step: waits[step] for step in "234"} == {"2": [], "3": [], "4": []}, asked
