"""Check a graphics card in a minute: `python -m minimind_dpo.check_gpu`.

Prints a table to paste into a report: what is installed, and for every MiniMind generation and
every precision whether the numbers are right, whether the host waits, and how fast a step is. Exit
codes: 0 all is sound, 1 something is not, 2 there is no such device.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from minimind_dpo import launch

if TYPE_CHECKING:
    import torch

    from minimind_dpo.training.device_check import Row

FAILED, WRONG_INPUT = 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m minimind_dpo.check_gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to see the table")
    parser.add_argument("--generations", nargs="*", help="v1 v2a v2 v3 v_learn; all by default")
    given = parser.parse_args(arguments)
    launch.let_memory_grow()

    import torch
    from rich.console import Console
    from rich.progress import track

    from minimind_dpo.models.minimind.generations import GENERATIONS
    from minimind_dpo.training.device_check import check_device

    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        build = f"torch {torch.__version__}, built for CUDA {torch.version.cuda or 'no version'}"
        print(f"Error: torch sees no CUDA device ({build})", file=sys.stderr)
        return WRONG_INPUT
    unknown = sorted(set(given.generations or ()) - set(GENERATIONS))
    if unknown:
        print(
            f"Error: no generation {unknown[0]}; there are {', '.join(GENERATIONS)}",
            file=sys.stderr,
        )
        return WRONG_INPUT
    console = Console()
    for name, value in environment(device).items():
        console.print(f"{name:<12} {value}", highlight=False)
    names = given.generations or list(GENERATIONS)
    rows = [
        row
        for name in track(names, "Checking", console=console, transient=True)
        for row in check_device(device, [name])
    ]
    console.print(table(rows), highlight=False, soft_wrap=True)
    wrong = [row for row in rows if not row.sound]
    for row in wrong:
        console.print(f"{row.generation} {row.precision}: {row.layout}; host waits: {row.waits}")
    console.print(
        "All is sound." if not wrong else f"{len(wrong)} of {len(rows)} rows are not sound."
    )
    return FAILED if wrong else 0


def environment(device: torch.device) -> dict[str, str]:
    """What numbers and speed depend on besides this program."""
    import torch

    versions = {name: metadata.version(name) for name in ("torch", "lightning", "transformers")}
    facts = {
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    if device.type != "cuda":
        return facts
    card = torch.cuda.get_device_properties(device)
    flash = torch.backends.cuda.is_flash_attention_available()
    return facts | {
        "card": f"{card.name}, capability {card.major}.{card.minor}, {card.total_memory >> 30} GiB",
        "CUDA": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "flash": "in this build" if flash else "not in this build",
        "Triton": _version("triton"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed: layers are not compiled"


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    head = ("generation", "precision", "layout", "first loss", "noise", "waits", "pairs a second")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        layout, waits = (x if x in ("ok", "none") else "NO" for x in (row.layout, row.waits))
        numbers = (f"{row.loss:.6f}", f"{row.noise:.1e}", waits, f"{row.pairs_per_second:.0f}")
        lines.append((row.generation, row.precision, layout, *numbers))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
