"""Settings in files: one of the user's, and one of the project's, with sections for machines.

::

    memory_limit = "60%"            # everywhere

    [machine."node-*"]              # where the host name is like this
    workers = 24
    memory_limit = "96GB"

Of sections that match, all hold; a later one goes before an earlier one, and each before what is said for
everywhere. The project's file is ``graphmill.toml`` in the working folder or the nearest folder above that
has one, or ``[tool.graphmill]`` in a ``pyproject.toml`` there.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import socket
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graphmill.config import toml_text
from graphmill.config.settings import ALIASES, SETTINGS, did_you_mean
from graphmill.errors import ConfigError

logger = logging.getLogger("graphmill")

FILE_NAME: Final = "graphmill.toml"
PYPROJECT: Final = "pyproject.toml"
#: Where settings are in a pyproject.toml.
IN_PYPROJECT: Final = ("tool", "graphmill")
MACHINE: Final = "machine"
#: Says what this machine is called, where that is not its host name.
MACHINE_VARIABLE: Final = "GRAPHMILL_MACHINE"

#: Names that settings may have in a file.
KEYS: Final = (*ALIASES, *(name for name, setting in SETTINGS.items() if setting.is_text))
_PLACE: Final = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Section:
    """Settings that hold everywhere, or on some machines."""

    #: Where it is in the file.
    table: toml_text.Path
    #: The name or pattern of the machines; None for everywhere.
    machine: str | None
    #: What is set, by the names that settings have in Python.
    values: Mapping[str, Any]
    #: The keys that were used for that.
    keys: Mapping[str, str]

    def holds_for(self, machine: str) -> bool:
        """Tell whether it holds on a machine of that name; the part before the first dot is a name too."""
        if self.machine is None:
            return True
        pattern, full = self.machine.lower(), machine.lower()
        return any(fnmatch.fnmatchcase(name, pattern) for name in (full, full.partition(".")[0]))


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """A file with settings."""

    path: Path
    text: str
    #: In the order in which they go before each other, the strongest last.
    sections: tuple[Section, ...]

    def where(self, section: Section, name: str) -> str:
        """Say where a setting stands: file and line."""
        line = toml_text.line_of(self.text, (*section.table, section.keys[name]))
        return f"{self.path}, line {line}"


def machine_name() -> str:
    """Tell what this machine is called: its host name, or what GRAPHMILL_MACHINE says."""
    return os.environ.get(MACHINE_VARIABLE) or socket.gethostname()


# ---- where they are


def user_path() -> Path:
    """Tell where the user's file is, whether it exists or not."""
    chosen = os.environ.get("XDG_CONFIG_HOME")
    if chosen and Path(chosen).is_absolute():  # the specification has others ignored
        folder = Path(chosen)
    elif sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path.home() / ".config"
    return folder / "graphmill" / FILE_NAME


def find_project_path(start: Path) -> Path | None:
    """Find the project's file: in a folder or the nearest above it that has one."""
    for folder in (start, *start.parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
        if _has_settings(folder / PYPROJECT):
            return folder / PYPROJECT
    return None


def _has_settings(pyproject: Path) -> bool:
    """Tell whether a pyproject.toml has a section of ours; whatever else is wrong in it is passed over."""
    try:
        text = pyproject.read_text(encoding="utf-8")
        return "graphmill" in text and _within(tomllib.loads(text), IN_PYPROJECT) is not None
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: no TOML, or no UTF-8
        logger.debug("%s is passed over: %s", pyproject, error)
        return False


def load() -> list[SettingsFile]:
    """Read the files there are, the user's before the project's.

    Raises
    ------
    ConfigError
        If one of them cannot be read, or says what it must not.
    """
    paths: list[Path | None] = []
    try:
        paths.append(user_path())
    except RuntimeError as error:  # there is no home folder
        logger.debug("no settings of a user: %s", error)
    try:
        paths.append(find_project_path(Path.cwd()))
    except FileNotFoundError as error:  # the working folder is gone
        logger.debug("no settings of a project: %s", error)
    return [read(path) for path in dict.fromkeys(paths) if path is not None and path.is_file()]


# ---- what they say


def read(path: Path) -> SettingsFile:
    """Read a file.

    Raises
    ------
    ConfigError
        If it cannot be read, is no TOML, or says what it must not; with the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not written in UTF-8: {error}") from error
    return parse(path, text)


def parse(path: Path, text: str) -> SettingsFile:
    """Make settings of a file's text; errors as for `read`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(_not_toml(path, str(error))) from None
    root = table_in(path)
    return SettingsFile(path, text, tuple(_Reader(path, text).sections(_within(data, root) or {}, root)))


def table_in(path: Path) -> toml_text.Path:
    """Tell which table settings are in that hold everywhere."""
    return IN_PYPROJECT if path.name == PYPROJECT else ()


def _within(data: Any, path: toml_text.Path) -> Any:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def _not_toml(path: Path, message: str) -> str:
    found = _PLACE.search(message)
    place = f", line {found[1]}, column {found[2]}" if found and found[1] else ""
    return f"{path}{place}: this is not valid TOML: {_PLACE.sub('', message)}"


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads settings out of a file's data, and says where it is wrong."""

    path: Path
    text: str

    def sections(self, data: Any, root: toml_text.Path) -> Iterator[Section]:
        if not isinstance(data, dict):
            raise self._error(root, "must be a table of settings")
        machines = data.get(MACHINE, {})
        if not isinstance(machines, dict):
            raise self._error(
                (*root, MACHINE), 'must be a table with a section per machine: [machine."node-*"]'
            )
        yield self._section(None, {key: value for key, value in data.items() if key != MACHINE}, root)
        for machine, values in machines.items():
            table = (*root, MACHINE, machine)
            if not isinstance(values, dict):
                raise self._error(table, 'must stand in a section of a machine, such as [machine."node-*"]')
            yield self._section(machine, values, table)

    def _section(self, machine: str | None, data: dict[str, Any], table: toml_text.Path) -> Section:
        keys: dict[str, str] = {}
        for key, value in data.items():
            name = ALIASES.get(key, key)
            self._check(name, key, value, (*table, key))
            if name in keys:
                raise self._error((*table, key), f"says the same as {keys[name]!r}: leave one of them out")
            keys[name] = key
        return Section(table, machine, {name: data[key] for name, key in keys.items()}, keys)

    def _check(self, name: str, key: str, value: Any, place: toml_text.Path) -> None:
        if key not in KEYS:
            known = (*KEYS, MACHINE) if MACHINE not in place else KEYS
            hint = did_you_mean(key, known)
            if not hint and isinstance(value, dict) and MACHINE in place:
                hint = ' (a name with dots needs quotes, as in [machine."node.example.org"])'
            raise self._error(place, f"is no setting{hint}; there are {', '.join(known)}")
        setting = SETTINGS[name]
        if not setting.fits(value):
            raise self._error(place, f"must be {setting.allowed}; it is {_shown(value)}")

    def _error(self, place: toml_text.Path, message: str) -> ConfigError:
        line = toml_text.line_of(self.text, place)
        where = f"{self.path}, line {line}" if line else f"{self.path}"
        return ConfigError(f"{where}: {place[-1]!r} {message}")


def _shown(value: Any) -> str:
    """Show a value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else "a table" if isinstance(value, dict) else repr(value)
