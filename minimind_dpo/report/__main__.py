"""Make a sweep's report anew from its finished runs: `python -m minimind_dpo.report FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minimind_dpo.report.sweep import tell_answer

WRONG_INPUT = 2


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m minimind_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep's, outputs/sweeps/<date>_<name>")
    folder = parser.parse_args(arguments).folder
    try:
        tell_answer(folder)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
