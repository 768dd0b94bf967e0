"""Make the page of a run, or the report of a sweep, anew: `python -m minimind_dpo.report FOLDER`.

A run's page is in the language of its configuration, or `--language zh`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from minimind_dpo.exit_codes import DONE, WRONG_INPUT
from minimind_dpo.report.run import write_run_report
from minimind_dpo.report.sweep import tell_answer
from minimind_dpo.report.words import LANGUAGES


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m minimind_dpo.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run or of a sweep, outputs/train/RUN")
    parser.add_argument("--language", choices=LANGUAGES, help="of a run's page")
    given = parser.parse_args(arguments)
    try:
        if (given.folder / "config.yaml").is_file():
            language = given.language or _language(given.folder / "config.yaml")
            print(f"Report: {write_run_report(given.folder, language)}")
        else:
            tell_answer(given.folder)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return DONE


def _language(config: Path) -> str:
    """`report.language` of a run's configuration, which earlier runs do not have."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    language = content.get("report", {}).get("language")
    return language if language in LANGUAGES else LANGUAGES[0]


if __name__ == "__main__":
    sys.exit(main())
