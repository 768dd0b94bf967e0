"""Exit codes of every command, as README has them."""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
WRONG_INPUT: Final = 2
INTERRUPTED: Final = 130
"""Stopped by Ctrl-C: 128 + SIGINT."""
TERMINATED: Final = 143
"""Stopped by SIGTERM, by SIGHUP, or by SIGUSR1 before a job's time is over: 128 + SIGTERM."""
NOT_READ: Final = 141
"""What a shell reports where nobody reads the output any more: 128 + SIGPIPE."""
