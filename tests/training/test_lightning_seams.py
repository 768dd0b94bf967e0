"""Lightning's private members are behind one file: a new version of it is one file to read."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
from lightning.pytorch import loops, strategies, trainer

import minimind_dpo
from minimind_dpo.training.lightning_seams import take_started_ranks

PACKAGE = Path(minimind_dpo.__file__).parent
SEAMS = PACKAGE / "training" / "lightning_seams.py"


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def members(path: Path) -> set[str]:
    """Private attributes that a file reads of something other than `self` or `cls`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and private(node.attr)
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
    }


def lightnings_own() -> set[str]:
    """Names of private members in the modules that the package has to do with."""
    folders = {Path(inspect.getfile(part)).parent for part in (L, loops, strategies, trainer)}
    files = {file for folder in folders for file in folder.rglob("*.py")}
    trees = (ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for file in files)
    return {
        node.name if isinstance(node, ast.FunctionDef) else node.attr
        for tree in trees
        for node in tree
        if (isinstance(node, ast.FunctionDef) and private(node.name))
        or (isinstance(node, ast.Attribute) and private(node.attr))
    }


def test_no_other_file_touches_a_private_member_of_lightning() -> None:
    theirs = lightnings_own()
    assert {"_should_accumulate", "_data_fetcher"} <= members(SEAMS) & theirs
    found = {
        str(path.relative_to(PACKAGE)): names
        for path in PACKAGE.rglob("*.py")
        if path != SEAMS and (names := members(path) & theirs)
    }
    assert found == {}


def test_ranks_that_are_started_after_the_watch_has_begun_are_watched() -> None:
    """Lightning's launcher makes its list anew when it starts them."""
    launcher = SimpleNamespace(procs=[])
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert take_started_ranks(trainer) == []
    launcher.procs = ["rank 1", "rank 2"]
    assert take_started_ranks(trainer) == ["rank 1", "rank 2"]
    assert take_started_ranks(trainer) == launcher.procs == []
    del launcher.procs  # another launcher starts none
    assert take_started_ranks(trainer) == []
