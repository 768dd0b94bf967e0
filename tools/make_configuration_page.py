"""Make `docs/configuration.md` from the comments in `conf/`.

A comment above a key is its meaning; its value is the default. Limits come from the dataclasses of
options. A test makes the page anew and compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import CONF_DIR, SHIPPED
from minimind_dpo.options.limits import Choices, Range, keys_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every key, its default and its meaning; made from the comments in `conf/` by
`tools/make_configuration_page.py`. A key is set on the command line, `loss.beta=0.2`, or in a file
of your own, which may begin from an experiment:

```yaml
# mine.yaml
experiment: minimind3
model:
  path: out/full_sft_768.pth
data:
  train: dpo.jsonl
loss:
  beta: 0.2
```

```text
python -m minimind_dpo.train --config mine.yaml
```

`--config-dir DIR experiment=mine` takes a folder of groups of your own, as Hydra does. `--cfg job`
prints what was composed and stops. A typo or a wrong type is refused with the nearest key; all
problems are told at once, with exit code 2, before a run folder exists.
"""


def keys_in(path: Path) -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of a YAML file, keys dotted by their indentation."""
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if not text or text.startswith("# @package"):
            comment = []
        elif text.startswith("#"):
            comment.append(text.lstrip("# "))
        elif not text.startswith("- "):
            indent = len(line) - len(line.lstrip())
            name, _, value = text.partition(":")
            stack = [entry for entry in stack if entry[0] < indent]
            yield ".".join([*(entry[1] for entry in stack), name]), value.strip(), " ".join(comment)
            stack.append((indent, name))
            comment = []


def limit_of(key: str) -> str:
    """What a value has to fit, in words; empty where only its type says."""
    limits = {k.name: k.limits for k in keys_of(Config)}.get(key, ())
    words = [
        ", ".join(x.words) if isinstance(x, Choices) else str(x)
        for x in limits
        if isinstance(x, Choices | Range)
    ]
    return "; ".join(words)


def table(prefix: str, path: Path) -> Iterator[str]:
    """Rows of the keys of one file."""
    known = {key.name for key in keys_of(Config)}
    yield "| Key | Default | Limits | Meaning |"
    yield "|---|---|---|---|"
    for name, value, meaning in keys_in(path):
        key = prefix + name
        if key in known:
            cells = (f"`{key}`", f"`{value}`" if value else "", limit_of(key), meaning)
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## The run", "", *table("", CONF_DIR / "config.yaml")]
    for group in sorted({key.name.split(".")[0] for key in keys_of(Config) if "." in key.name}):
        files = sorted((CONF_DIR / group).glob("*.yaml"))
        if not files:
            continue
        main = next((file for file in files if file.stem == "default"), files[0])
        # What config.yaml chooses none of is of several jobs, and added.
        start = group if group in SHIPPED.groups() else f"-m +{group}"
        names = ", ".join(f"`{start}={file.stem}`" for file in files if file.stem != "default")
        parts += ["", f"## {group}"]
        parts += ["", f"Choices: {names}."] if names else []
        header, rule, *rows = table(f"{group}.", main)
        parts += ["", header, rule, *rows] if rows else []
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
