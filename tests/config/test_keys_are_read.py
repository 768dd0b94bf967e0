"""No key is accepted and then ignored: each is read where a run is built, by the code itself.

The source is looked at, not run: chains of attributes that begin at a configuration, through names
that stand for a part of it (`lora = config.model.lora`). Reading a key to check it, to print it or
to advise on it does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import minimind_dpo
from minimind_dpo.config.schema import schema_keys

PACKAGE = Path(minimind_dpo.__file__).parent
NOT_USE = (
    "config",
    "out_of_memory.py",
    "demo",
    "_identity",
)
"""Modules, and one function, that read keys to check, advise or compare."""

HANDED_ON = {
    "data.": "data",
    "loss.": "objective",
    "model.lora.": "models/lora.py",
    "optim.": "training/optim.py",
    "schedule.": "training/optim.py",
    "callbacks.checkpoint.": "training/resume/callback.py",
    "evaluate.": "evaluation",
    "judge.": "evaluation",
    "judge.endpoint.": "evaluation/judges",
    "judge.reward_model.": "evaluation/judges/reward_model.py",
}
"""Groups that other packages take whole, by the name `options`, and where."""


def sources(place: Path) -> list[ast.AST]:
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


def keys_read(tree: ast.AST) -> set[str]:
    """Dotted keys that a module reads, groups among them."""
    found: set[str] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name not in NOT_USE:
            found |= {key for key in _chains(function, _names(function)) if key}
    return found


def _names(function: ast.FunctionDef) -> dict[str, str]:
    """Names that stand for a part of the configuration in this function."""
    names = {"config": "", "cfg": ""}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=False) if several else [(target, value)]  # type: ignore[attr-defined]
            for left, right in pairs:
                path = _path(right, names)
                if isinstance(left, ast.Name) and path:
                    names[left.id] = path
    return names


def _path(node: ast.AST, names: dict[str, str]) -> str | None:
    """The key that an expression stands for; empty for the whole configuration."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if not isinstance(node, ast.Attribute):
        return None
    if node.attr in ("config", "cfg") and ast.unparse(node.value) == "self":
        return ""
    before = _path(node.value, names)
    return None if before is None else f"{before}.{node.attr}".lstrip(".")


def _chains(function: ast.FunctionDef, names: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            path = _path(node, names)
            if path:
                yield path


def options_read(tree: ast.AST) -> set[str]:
    """What is read of anything called `options`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("options")
    }


def test_every_key_is_read_by_the_code_that_runs() -> None:
    files = [
        path
        for path in PACKAGE.rglob("*.py")
        if not set(path.relative_to(PACKAGE).parts) & set(NOT_USE)
    ]
    read = {key for path in files for tree in sources(path) for key in keys_read(tree)}
    for group, place in HANDED_ON.items():
        assert group.rstrip(".") in read
        options = {name for tree in sources(PACKAGE / place) for name in options_read(tree)}
        read |= {group + name for name in options}
    # Handed to Lightning as they are; test_trainer_keywords compares them with its signature.
    assert "vars(config.trainer)" in (PACKAGE / "run" / "build.py").read_text(encoding="utf-8")
    # Handed to the reader as one mapping.
    prepare = PACKAGE / "data" / "store" / "prepare.py"
    assert "options.columns.named()" in prepare.read_text(encoding="utf-8")
    whole = ("trainer.", "data.columns.")
    keys = [key for key in schema_keys() if not key.startswith(whole)]
    assert len(keys) > 90
    assert [key for key in keys if key not in read] == []


def test_a_key_that_nobody_reads_would_be_found() -> None:
    tree = ast.parse(
        "def f(config, other):\n"
        "    lora, data = config.model.lora, other.data\n"
        "    print(lora.r, data.train, config.loss.beta, self.config.export.hf)\n"
    )
    assert {"model.lora.r", "loss.beta", "export.hf"} <= keys_read(tree)
    assert not {"data.train", "model.lora.alpha"} & keys_read(tree)
