"""Make the page of a run, or the report of a sweep, anew: `python -m minimind_dpo.report FOLDER`.

A run's page is in the language of its configuration, or of a key beside it, `report.language=zh`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from minimind_dpo import os_errors
from minimind_dpo.exit_codes import DONE, WRONG_INPUT
from minimind_dpo.output import keep_output
from minimind_dpo.report.run import write_run_report
from minimind_dpo.report.sweep import tell_answer
from minimind_dpo.report.words import LANGUAGES

_KEYS = {f"report.language={language}": language for language in LANGUAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m minimind_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run or of a sweep, outputs/train/RUN")
    parser.add_argument("key", nargs="?", choices=_KEYS, metavar="report.language=zh")
    given = parser.parse_args(arguments)
    config = given.folder / "config.yaml"
    try:
        if not given.folder.is_dir():
            raise ValueError(f"{given.folder} does not exist, or is no folder")
        if config.is_file():
            language = _KEYS[given.key] if given.key else _language(config)
            print(f"Report: {write_run_report(given.folder, language)}")
        elif given.key:
            raise ValueError(f"{given.key} is for the page of a run, and {given.folder} is none")
        else:
            tell_answer(given.folder)
    except (OSError, ValueError) as error:
        print(f"Error: {os_errors.explain(error) or error}", file=sys.stderr)
        return WRONG_INPUT
    return DONE


def _language(config: Path) -> str:
    """`report.language` of a run's configuration, which earlier runs do not have.

    Raises:
        ValueError: The file is no configuration.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
        report = content.get("report", {})
    except (AttributeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{config} is no configuration of a run: it is cut short or damaged"
        ) from error
    language = report.get("language") if isinstance(report, dict) else None
    return language if language in LANGUAGES else LANGUAGES[0]


if __name__ == "__main__":
    keep_output()
    sys.exit(main())
