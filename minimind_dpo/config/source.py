"""Where a configuration is read from: `conf/`, and a file of settings of the user's own over it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omegaconf import OmegaConf
from yaml import YAMLError

from minimind_dpo.options.problem import ConfigError, Problem

PACKAGE_DIR: Final = Path(__file__).resolve().parents[1]

SETTINGS: Final = "settings_of_the_user"
"""The name by which Hydra knows the content of `Source.file`."""


def find_conf(package: Path) -> Path:
    """The folder of YAML files: inside an installed package, else beside it in a checkout.

    Raises:
        FileNotFoundError: It is at neither place.
    """
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise FileNotFoundError(
        f"conf/config.yaml is neither in {package} nor beside it: the installation is incomplete, "
        "install minimind-dpo again"
    )


# Absolute: a relative one cannot be found from a console script.
CONF_DIR: Final = find_conf(PACKAGE_DIR)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a configuration is read from, before the overrides of the command line.

    Attributes:
        conf: The folder of `config.yaml` and of the groups.
        file: A YAML file of settings over these (`--config`); the same keys as `config.yaml`.
        resumed: The run folder whose own `config.yaml` the file is; its keys that say where it
            writes and what it resumes are left out.
    """

    conf: Path = CONF_DIR
    file: Path | None = None
    resumed: Path | None = None

    def flags(self) -> list[str]:
        """The flags of a command line that name it."""
        conf = [] if self.conf == CONF_DIR else ["--config-path", str(self.conf)]
        return conf if self.file is None else [*conf, "--config", str(self.file)]

    def groups(self) -> dict[str, str | None]:
        """The groups of which `config.yaml` chooses a file, and which one."""
        listed: Any = OmegaConf.to_container(OmegaConf.load(self.conf / "config.yaml"))
        entries = [entry for entry in listed["defaults"] if isinstance(entry, dict)]
        chosen = {name: file for entry in entries for name, file in entry.items()}
        return {name: file for name, file in chosen.items() if not name.startswith("override ")}

    def _has(self, group: str, value: Any) -> bool:
        """Whether a value has the name of one of the group's files, as `logger` has."""
        name = value.get("name") if isinstance(value, dict) else None
        return isinstance(name, str) and (self.conf / group / f"{name}.yaml").is_file()

    def settings(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The file as a configuration that Hydra can start from.

        It is `config.yaml`, then the groups that the file chooses, then its values. A group that
        the command line chooses replaces what the file has under it.

        Raises:
            ConfigError: The file cannot be read, or is no mapping of keys to values.
        """
        assert self.file is not None
        content = _load(self.file)
        groups = self.groups()
        chosen = {override.lstrip("+").partition("=")[0] for override in overrides} & groups.keys()
        of_run = ("run_dir", "resume", "resume_with_changes") if self.resumed else ()
        content = {k: v for k, v in content.items() if k not in chosen and k not in of_run}
        defaults = [_as_override(entry, groups) for entry in content.pop("defaults", None) or ()]
        for group in sorted(groups.keys() & content.keys()):
            if isinstance(content[group], str):
                defaults.append({f"override {group}": content.pop(group)})
            elif self._has(group, content[group]):
                # Its keywords are those of that file, not of the one that config.yaml chooses.
                defaults.append({f"override {group}": content[group]["name"]})
        base = ("config", "schema", "_self_")
        listed = [entry for entry in defaults if entry not in base]
        return {"defaults": ["config", *listed, "_self_"], **content}


SHIPPED: Final = Source()


def _load(file: Path) -> dict[str, Any]:
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (OSError, UnicodeError, YAMLError) as error:
        why = f"cannot be read ({' '.join(str(error).split())})"
        raise ConfigError([Problem("--config", why, value=str(file))]) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        why = "is no file of settings: it must map keys to values, as conf/config.yaml does"
        raise ConfigError([Problem("--config", why, value=str(file))])
    return {str(key): value for key, value in content.items()}


def _as_override(entry: Any, groups: Collection[str]) -> Any:
    """An entry of a defaults list that chooses another file of a group of `config.yaml`."""
    if isinstance(entry, dict) and len(entry) == 1:
        (name, value), *_ = entry.items()
        if str(name).lstrip("/") in groups:
            return {f"override {str(name).lstrip('/')}": value}
    return entry


def run_folder_of(path: Path) -> Path | None:
    """The folder of a run by itself, by its folder of states, or by one of these."""
    if path.is_dir() and path.name != "checkpoints":
        return path
    states = path if path.is_dir() else path.parent
    return states.parent if states.name == "checkpoints" else None
