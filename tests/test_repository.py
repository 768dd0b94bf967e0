"""The repository itself: what READMEs, Makefile, constraints and metadata say is true."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import minimind_dpo
from minimind_dpo.config.check import Machine, validate
from minimind_dpo.config.command_line import completed, read_command_line
from minimind_dpo.config.compose import compose
from minimind_dpo.config.jobs import Grid, check_jobs, for_sweep
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR
from minimind_dpo.data.read.pairs import parse_record
from minimind_dpo.objective.losses.registry import LOSSES

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README_zh.md")
TRANSLATED = [
    READMES,
    *(
        (f"docs/{name}.md", f"docs/{name}_zh.md")
        for name in ("commands", "data", "running", "troubleshooting")
    ),
]
PAGES = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")]
FILES = (".py", ".html", ".md")
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ""}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", read(name), flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def table_rows(name: str, first_cell: str) -> dict[str, list[str]]:
    """Rows of the table whose heading begins with a cell, by their own first code span."""
    table = read(name).split(f"| {first_cell} |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {code_spans(row[0])[0]: row[1:] for row in cells}


def tracked() -> list[Path]:
    """Files that belong to the project: what git lists, else all but what is never committed."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    skipped = {".venv", "outputs", "build", "dist", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skipped & set(p.parts)]


def test_every_module_says_in_one_line_what_it_is() -> None:
    for path in sorted(ROOT.glob("minimind_dpo/**/*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = docstring.split("\n")[0]
        assert first.endswith("."), path
        assert len(first.split()) >= 3, path


@pytest.mark.parametrize("names", TRANSLATED, ids=lambda names: names[0])
def test_both_languages_have_the_same_structure(names: tuple[str, str]) -> None:
    english, chinese = (read(name) for name in names)
    for pattern in (r"^#+ ", r"^\|", r"^- ", r"^\*\*", r"^!\[", r"^<!--.*-->$"):
        counts = [len(re.findall(pattern, text, flags=re.M)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    without_comments = [
        [(kind, re.sub(r"#.*", "", code)) for kind, code in code_blocks(name) if kind != "text"]
        for name in names
    ]
    assert without_comments[0] == without_comments[1]


@pytest.mark.parametrize("names", TRANSLATED, ids=lambda names: names[0])
def test_tables_name_the_same_code_in_both_languages(names: tuple[str, str]) -> None:
    """Keys, file names and losses are not translated."""
    rows = [[line for line in read(name).splitlines() if line.startswith("|")] for name in names]
    assert [code_spans(row) for row in rows[0]] == [code_spans(row) for row in rows[1]]


def test_a_readme_is_short_and_has_one_picture() -> None:
    for name in READMES:
        assert len(read(name).encode()) <= 10_000
        (picture,) = re.findall(r"^!\[[^\]]+\]\(([^)]+)\)$", read(name), flags=re.M)
        assert (ROOT / picture).is_file()


@pytest.mark.parametrize("name", [*READMES, *PAGES, "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", read(name)):
        if not target.startswith("http"):
            assert ((ROOT / name).parent / target).exists(), target


def test_the_page_of_the_configuration_is_made_from_its_comments() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_configuration_page as m; print(m.page(), end='')"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout == read("docs/configuration.md")


def test_the_table_of_losses_is_the_registry() -> None:
    name = "docs/losses.md"
    assert list(table_rows(name, "`loss.type`")) == list(LOSSES)
    said = table_rows(name, "Key")
    understood = set().union(*(loss.uses for loss in LOSSES.values()))
    assert set(said) == understood
    for key, (_, losses) in said.items():
        named = set(code_spans(losses))
        expected = {loss for loss in LOSSES if key in LOSSES[loss].uses}
        assert (set(LOSSES) - named if losses.startswith("all but") else named) == expected, key


@pytest.mark.parametrize("name", ["docs/data.md", "docs/data_zh.md"])
def test_examples_of_data_are_read_as_what_they_show(name: str) -> None:
    examples = [json.loads(code) for kind, code in code_blocks(name) if kind == "json"]
    formats = [parse_record(example, "data:1")[1] for example in examples]
    assert formats == ["minimind", "prompt_turns", "prompt_text", "sharegpt"]


def commands(name: str) -> list[list[str]]:
    """Arguments of each training command, continued lines joined."""
    found = []
    for kind, code in code_blocks(name):
        for line in code.replace("\\\n", " ").splitlines() if kind == "sh" else ():
            match = re.search(r"-m minimind_dpo\.train(.*)", line)
            if match:
                found.append(shlex.split(match.group(1), comments=True))
    return found


COMMANDS = [arguments for name in ("README.md", *PAGES) for arguments in commands(name)]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_of_the_documents_are_valid(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("full_sft_512.pth", "full_sft_768.pth", "dpo.jsonl", "a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    settings = "model: {path: full_sft_768.pth, tokenizer: tokenizer}\ndata: {train: [dpo.jsonl]}\n"
    run = tmp_path / "outputs" / "train" / "RUN"
    run.mkdir(parents=True)
    for file in (tmp_path / "mine.yaml", run / "config.yaml"):
        file.write_text(settings)

    def check(config: Config) -> None:
        validate(config, machine=Machine(cuda=8, mps=False))

    line = completed(read_command_line(arguments))
    if line.multirun:
        check_jobs(Grid.read(for_sweep(line)), line.source, check)
    elif not line.shows:
        check(compose(line.overrides, line.source))


@pytest.mark.parametrize("name", [*READMES, *PAGES])
def test_keys_that_are_named_exist(name: str) -> None:
    keys = set(schema_keys())
    groups = {key.split(".")[0] for key in keys}
    free = ("model.config.", "logger.options.", "data.template_options.")
    named = [span.split("=")[0] for span in code_spans(read(name))]
    dotted = [key for key in named if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key)]
    ours = [key for key in dotted if key.split(".")[0] in groups and not key.endswith(FILES)]
    assert [key for key in ours if key not in keys and not key.startswith(free)] == []


@pytest.mark.parametrize("name", READMES)
def test_choices_of_groups_named_in_a_readme_are_files(name: str) -> None:
    text = read(name)
    for group in ("experiment", "logger"):
        files = {path.stem for path in (CONF_DIR / group).glob("*.yaml")}
        row = next(line for line in text.splitlines() if line.startswith(f"| `{group}` |"))
        assert set(code_spans(row)[1:]) == files


@pytest.mark.parametrize("name", READMES)
def test_extras_that_are_named_are_those_there_are(name: str) -> None:
    extras = set(pyproject()["project"]["optional-dependencies"]) - {"dev", "bench"}
    listed = re.search(r"pip install -e '\.\[([a-z,]+)\]'", read(name))
    assert listed
    assert set(listed.group(1).split(",")) == extras


@pytest.mark.parametrize("name", [*READMES, ".ci/run", ".github/workflows/check.yml"])
def test_make_targets_that_are_named_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.M))
    text = read(name)
    named = re.findall(r"(?:`|^|run: )make ([a-z-]+)", text, flags=re.M)
    assert named
    assert set(named) <= targets


def test_help_lists_every_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.M))
    described = set(re.findall(r"^([a-z-]+):.*## \S", read("Makefile"), flags=re.M))
    assert targets == described


def pyproject() -> dict[str, dict]:
    return tomllib.loads(read("pyproject.toml"))


def test_constraints_pin_what_the_package_and_its_tests_need() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    pinned = {}
    for line in lines:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        pinned[canonicalize_name(requirement.name)] = pin.version
    project = pyproject()["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for text in needed:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), text
    assert pinned["torch"] == "2.13.0"


def test_the_version_is_the_same_everywhere() -> None:
    version = pyproject()["project"]["version"]
    assert version == minimind_dpo.__version__
    assert f"## {version}" in read("CHANGELOG.md")


def test_nothing_names_this_machine_or_a_package_registry() -> None:
    own = Path(__file__).relative_to(ROOT)
    paths = re.compile(r"(?<![\w.$~}])/(?:work|home|root|Users|tmp|opt)/\w")
    hosts = re.compile(
        r"pypi\.|pythonhosted|anaconda|index-url|mirrors?\.\w+\.(?:com|cn|edu)", re.I
    )
    found = []
    for path in tracked():
        if (
            path.suffix not in TEXT
            or path.relative_to(ROOT) == own
            or path.stat().st_size > 1 << 20
        ):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for pattern in (paths, hosts):
            found += [f"{path.relative_to(ROOT)}: {m.group()}" for m in pattern.finditer(text)]
    assert found == []


def test_public_names_come_when_asked_for_and_not_before() -> None:
    code = "import sys, minimind_dpo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for name in minimind_dpo.__all__:
        assert getattr(minimind_dpo, name) is not None
        assert name in dir(minimind_dpo)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        minimind_dpo.nothing  # noqa: B018


def test_python_examples_of_the_documents_run(tmp_path: Path) -> None:
    examples = [code for kind, code in code_blocks("docs/api.md") if kind == "python"]
    code = "\n".join(examples)
    short = code.replace("max_steps=20", "max_steps=2, limit_val_batches=2")
    assert short != code
    promises = re.findall(r"print\(.*\)  # (.*)", code)
    assert len(promises) == 3
    done = subprocess.run(
        [sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(promise in done.stdout for promise in promises)
    assert (tmp_path / "aligned" / "config.json").is_file()
