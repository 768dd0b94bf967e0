"""Write a model for others: `python -m minimind_dpo.export run=RUN format=hf,native,gguf`.

Or another model than a run's: `model.path=MODEL to=FOLDER`. Exit codes: 0 done, 2 wrong input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from minimind_dpo.config.commands import end, read_command
from minimind_dpo.options.limits import Choices, Form, as_list
from minimind_dpo.output import keep_output

_READS: Final = ("name",)
FORMATS: Final = ("hf", "native", "gguf")
_SEVERAL: Final = Form(
    lambda value: bool(as_list(value)) and set(as_list(value)) <= set(FORMATS),
    f"one or several of {', '.join(FORMATS)}",
    "For example: format=hf,gguf",
)


@dataclass
class ExportKeys:
    """The command's own keys; `conf/commands/export.yaml` says what each means."""

    run: str | None = None
    format: Annotated[Any, _SEVERAL] = field(default_factory=lambda: ["hf"])
    to: str | None = None
    dtype: Annotated[str, Choices("auto", "float32", "float16", "bfloat16")] = "auto"


def main() -> None:
    """Entry point."""
    end(run)


def run(arguments: Sequence[str]) -> None:
    """Do what a command line says.

    Raises:
        ConfigError, CheckpointError: What is wrong with it, or with the model.
    """
    command = read_command(arguments, "export", ExportKeys, _READS, __doc__ or "")
    keep_output()
    own = command.own
    config, folder = command.opened(own.run)
    # Only now: torch and transformers take seconds to import, a typo should not.
    from minimind_dpo.run.export import export_model
    from minimind_dpo.run.process import prepare_process

    prepare_process(config)
    export_model(config, folder, as_list(own.format), own.to, own.dtype)


if __name__ == "__main__":
    main()
