"""Print the lowest versions that pyproject.toml allows, as constraints for pip.

`make test-lowest` installs them into an environment of its own and runs the tests there.

    python tools/lowest.py [name==version ...]     other versions than the lowest, as torch==2.13.0
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lowest(others: list[str]) -> list[str]:
    """`name==version` of each dependency that training and the tests need."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    pins: dict[str, str] = {}
    for requirement in map(Requirement, needed):
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                pins[requirement.name] = bound.version
    pins |= {name: version for name, _, version in (other.partition("==") for other in others)}
    return [f"{name}=={version}" for name, version in pins.items()]


if __name__ == "__main__":
    print(*lowest(sys.argv[1:]), sep="\n")
