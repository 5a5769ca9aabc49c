"""``graphmill config``: settings, where they come from, and changes to files."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphmill import config
from graphmill.cli.output import Style, styled, table, title
from graphmill.config import files, toml_text
from graphmill.config.settings import ALIASES, SETTINGS, Setting, check, no_setting, read_text
from graphmill.errors import CommandError, ConfigError


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked for."""
    actions = {"show": _show, "explain": _explain, "set": _set, "unset": _unset}
    return actions[arguments.action](arguments)


def load_dask() -> None:
    """Load Dask's configuration, if there is Dask: it may say something too."""
    if importlib.util.find_spec("dask") is not None:
        import dask.config  # noqa: F401, PLC0415 - optional


# ---- showing


@dataclass(frozen=True, slots=True)
class _Said:
    """What one place says about a setting."""

    value: Any
    where: str
    #: Whether it decides.
    holds: bool
    #: What the default is; or why this does not decide.
    note: str = ""

    def as_row(self) -> tuple[str, str]:
        """Make cells of it: value and place."""
        if self.value is None:
            return self.note, self.where
        return str(self.value), f"{self.where} ({self.note})" if self.note else self.where

    def as_json(self) -> dict[str, Any]:
        """Make plain data of it; the default has no value, and says in words what it is."""
        return {"value": self.value, "from": self.where, "holds": self.holds, "note": self.note}


def _said(setting: Setting) -> list[_Said]:
    """List what is said about a setting, what goes first first, the default last."""
    found: list[_Said] = []
    decided = False
    for source in config.sources(setting.name):
        if source.value is None:
            continue
        check(setting.name, source.value, source.where)
        holds = not decided and not source.elsewhere
        decided = decided or holds
        note = "for other machines" if source.elsewhere else ""
        found.append(_Said(source.value, source.where, holds, note))
    found.append(_Said(None, "default", not decided, setting.default))
    return found


def _show(arguments: argparse.Namespace) -> int:
    load_dask()
    held = {
        name: next(said for said in _said(setting) if said.holds)
        for name, setting in SETTINGS.items()
        if setting.is_text
    }
    if arguments.json:
        print(json.dumps({name: said.as_json() for name, said in held.items()}, indent=2))
        return 0
    title(f"Settings on {files.machine_name()}")
    table([(name, *said.as_row()) for name, said in held.items()])
    print()
    title("Files, the first one goes first")
    table([(str(path), what) for path, what in reversed(_places())])
    print()
    print(styled("`graphmill config --help` says what goes before what.", Style.FAINT))
    return 0


def _places() -> list[tuple[Path, str]]:
    """Tell which files there are, and what they are; the strongest last."""
    user, project = files.user_path(), files.find_project_path(Path.cwd())
    places = [(user, "the user's" if user.is_file() else "the user's, which does not exist")]
    if project is None:
        places.append((Path.cwd() / files.FILE_NAME, "the project's, which does not exist, here or above"))
    elif project != user:
        places.append((project, "the project's"))
    return places


def _explain(arguments: argparse.Namespace) -> int:
    load_dask()
    chosen = SETTINGS.values() if arguments.name is None else [_setting(arguments.name)]
    said = {setting.name: _said(setting) for setting in chosen if setting.is_text}
    if arguments.json:
        listed = {name: [each.as_json() for each in all_said] for name, all_said in said.items()}
        print(json.dumps(listed, indent=2))
        return 0
    for at, (name, all_said) in enumerate(said.items()):
        setting = SETTINGS[name]
        if at:
            print()
        title(f"{name}: {setting.what}")
        table([("must be", setting.allowed)])
        table([("->" if each.holds else "", *each.as_row()) for each in all_said])
    return 0


def _setting(name: str) -> Setting:
    known = ALIASES.get(name, name)
    if known not in SETTINGS or not SETTINGS[known].is_text:
        raise CommandError(no_setting(name, files.KEYS))
    return SETTINGS[known]


# ---- changing


def _set(arguments: argparse.Namespace) -> int:
    setting = _setting(arguments.name)
    value = read_text(setting.name, arguments.value)
    if value is None:
        raise CommandError(
            f"{setting.name!r} must be {setting.allowed}; `graphmill config unset` takes it out of a file"
        )
    check(setting.name, value, "the command line")
    return _change(arguments, setting, lambda text, path: toml_text.with_value(text, path, value), value)


def _unset(arguments: argparse.Namespace) -> int:
    return _change(arguments, _setting(arguments.name), toml_text.without, None)


def _change(
    arguments: argparse.Namespace,
    setting: Setting,
    edit: Callable[[str, toml_text.Path], str],
    value: Any,
) -> int:
    path = _file_to_change(arguments)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before = files.parse(path, text)
    table_path = files.table_in(path)
    if arguments.machine is not None:
        table_path = (*table_path, files.MACHINE, arguments.machine)
    section = next((each for each in before.sections if each.table == table_path), None)
    keys = section.keys if section is not None else {}
    if value is None and setting.name not in keys:
        print(f"{setting.name} is not set in {path}: nothing to remove")
        return 0
    key = keys.get(setting.name, setting.name)
    after = edit(text, (*table_path, key))
    _see_that_it_says(path, after, table_path, setting.name, value)
    _replace(path, after)
    what = f"removed {setting.name}" if value is None else f"{setting.name} = {value}"
    print(f"{path}: {what}" + (f" for machines like {arguments.machine!r}" if arguments.machine else ""))
    return 0


def _file_to_change(arguments: argparse.Namespace) -> Path:
    if arguments.user:
        return files.user_path()
    return files.find_project_path(Path.cwd()) or Path.cwd() / files.FILE_NAME


def _see_that_it_says(path: Path, text: str, table_path: toml_text.Path, name: str, value: Any) -> None:
    """See that a changed file says what it should: TOML can be written in more ways than are dealt with."""
    try:
        sections = files.parse(path, text).sections
    except ConfigError as error:
        raise _by_hand(path, table_path, name) from error
    found = [each.values.get(name) for each in sections if each.table == table_path]
    if found != [value] and not (value is None and not found):
        raise _by_hand(path, table_path, name)


def _by_hand(path: Path, table_path: toml_text.Path, name: str) -> CommandError:
    where = f" in {'.'.join(table_path)}" if table_path else ""
    return CommandError(f"{path} is written in a way that is not changed here: edit {name!r}{where} by hand")


def _replace(path: Path, text: str) -> None:
    """Write a file anew, so that whoever reads it finds the old one or the new one."""
    target = path.resolve()  # a link stays one
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=target.name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:  # noqa: PTH123 - it is a descriptor
            file.write(text)
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
