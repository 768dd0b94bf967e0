"""Compare two summaries of one run: `python tools/same_numbers.py before.json after.json`.

A change that is to change nothing gives the demo's `summary.json` bit for bit; what a clock or a
package's version says is left out. Exits with 1 and prints the first differences where there are
some.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MEASURED = re.compile(r"seconds|per_second|versions")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested dicts and lists, without what is measured anew each time."""
    if _MEASURED.search(key):
        return
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def differences(before: Path, after: Path) -> list[str]:
    """One line for each key whose values differ or that one of both lacks."""
    first, second = (dict(leaves(json.loads(path.read_text("utf-8")))) for path in (before, after))
    keys = dict.fromkeys([*first, *second])
    return [
        f"{key}: {first.get(key)!r} -> {second.get(key)!r}"
        for key in keys
        if key not in first or key not in second or repr(first[key]) != repr(second[key])
    ]


if __name__ == "__main__":
    found = differences(*map(Path, sys.argv[1:3]))
    print("\n".join(found[:20]) or "the same numbers")
    sys.exit(bool(found))
