"""States and reference log-probs leave the device without a wait, traced without a device."""

from __future__ import annotations

from traced_support import needs_absent_device, traced

pytestmark = needs_absent_device


def test_what_is_copied_to_the_host_is_waited_for_only_when_it_is_read() -> None:
    (copied, waited, model), (scored,) = traced("traced_copies.py")
    # Of each weight itself, two moments and its step; the head is the embedding, once.
    assert copied == {"waits": [], "downloads": 4 * model["parameters"]}
    assert [wait.split(" at ")[0] for wait in waited["waits"]] == ["event"]
    assert scored == {"waits": [], "downloads": 2}
