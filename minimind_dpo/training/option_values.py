"""Values of training's keys that have a form of their own: times, amounts, devices.

Limits are named functions: annotations are evaluated as text, where a lambda sees no module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from minimind_dpo.options.limits import SHARE, is_number

_TIME: Final = re.compile(r"\d+:\d\d:\d\d:\d\d")
_TIME_UNITS: Final = ("weeks", "days", "hours", "minutes", "seconds", "milliseconds")


def is_time(value: Any) -> bool:
    """DD:HH:MM:SS, or {hours: 2, minutes: 30}."""
    if isinstance(value, dict):
        shaped = bool(value) and all(
            unit in _TIME_UNITS and is_number(amount) and amount >= 0
            for unit, amount in value.items()
        )
    else:
        shaped = isinstance(value, str) and _TIME.fullmatch(value) is not None
    try:
        return shaped and seconds(value) >= 0
    except OverflowError:
        return False


def seconds(value: str | Mapping[str, float]) -> float:
    """Seconds of `DD:HH:MM:SS`, or of units as keywords of `timedelta`."""
    if not isinstance(value, str):
        return timedelta(**value).total_seconds()
    days, hours, minutes, rest = map(int, value.split(":"))
    return timedelta(days, rest, hours=hours, minutes=minutes).total_seconds()


def is_amount(value: Any) -> bool:
    """A number of batches, or a share of them as a float."""
    return is_number(value) and (value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0)


def parse_devices(devices: Any) -> int | list[int] | None:
    """What `trainer.devices` asks for: how many, which, or None for all (`auto`, -1).

    As in Lightning, the text "2" is a number and "0,2" or "2," are indices.

    Raises:
        ValueError: It is none of these, or names a device twice.
    """
    if devices in ("auto", "-1", -1):
        return None
    if isinstance(devices, str):
        listed = [int(part) for part in devices.split(",") if part.strip()]
        devices = listed if "," in devices else listed[0]
    if isinstance(devices, list):
        if not devices or len(set(devices)) < len(devices):
            raise ValueError(devices)
        if not all(type(index) is int and index >= 0 for index in devices):
            raise ValueError(devices)
        return devices
    if type(devices) is not int or devices < 1:  # a boolean is an int, but no number of devices
        raise ValueError(devices)
    return devices


def are_devices(value: Any) -> bool:
    """What `parse_devices` takes."""
    try:
        parse_devices(value)
    except (ValueError, TypeError, IndexError):
        return False
    return True


def are_betas(value: Any) -> bool:
    """Two decay rates of running averages."""
    return len(value) == 2 and all(beta in SHARE for beta in value)


def is_warn_or_switch(value: Any) -> bool:
    """`warn`, or on or off."""
    return value == "warn" or isinstance(value, bool)


def is_dev_run(value: Any) -> bool:
    """On or off, or a number of batches."""
    return isinstance(value, bool | int) and value >= 0


def is_interval(value: Any) -> bool:
    """A time, or an amount above 0."""
    return is_time(value) or (is_amount(value) and value > 0)


def is_sampling_time(value: Any) -> bool:
    """`val`, or a number of optimizer steps."""
    return value == "val" or (type(value) is int and value >= 1)


def are_targets(value: Any) -> bool:
    """Mappings that each name what is made."""
    return isinstance(value, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("_target_"), str) for entry in value
    )
