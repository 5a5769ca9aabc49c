"""Settings that may come from elsewhere than an argument.

Whatever is said nearer to the computation goes first:

1. arguments, such as ``Engine(num_workers=4)``;
2. `set`, in this process;
3. options of ``graphmill run``;
4. environment variables ``GRAPHMILL_<NAME>``;
5. where Dask has been loaded, ``dask.config`` under ``graphmill.<name>``, and then under the plain name that
   Dask's own schedulers read;
6. the project's file, and then the user's: see `graphmill.config.files`;
7. the default.

Files are read when a setting is first looked up, and then not again: `refresh` has them read anew.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from graphmill.config import files
from graphmill.config.settings import AUTO, LEAST_MEMORY, SETTINGS, check, did_you_mean, no_setting, read_text
from graphmill.errors import ConfigError

__all__ = ["LEAST_MEMORY", "SETTINGS", "Source", "get", "options", "refresh", "set", "sources"]

logger = logging.getLogger("graphmill")

_PREFIX = "GRAPHMILL_"
#: Variables of ours that are no settings.
_OTHER_VARIABLES = (files.MACHINE_VARIABLE, "GRAPHMILL_NO_COMPILER")

#: What `set` has set, the latest last.
_layers: list[Mapping[str, Any]] = []
#: What the command line says.
options: dict[str, Any] = {}
#: The files there are, once they were read.
_files: list[files.SettingsFile] | None = None
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Source:
    """A place that says something about a setting."""

    #: Which place, to go into a sentence.
    where: str
    #: What it says.
    value: Any
    #: Whether that is for machines of another name.
    elsewhere: bool = False


class set:  # noqa: A001, N801 - as in dask.config
    """Choose settings from now on, in all threads; as a context manager, for the enclosed block.

    Parameters
    ----------
    **settings
        By name; None for "not set".

    Raises
    ------
    ConfigError
        If there is no such setting, or it cannot have that value.

    Examples
    --------
    >>> with set(num_workers=3):
    ...     get("num_workers")
    3
    """

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            check(name, value, "graphmill.config.set")
        self._layer = dict(settings)
        _layers.append(self._layer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Blocks of several threads may end in any order, and two may have set the same.
        _layers[:] = [layer for layer in _layers if layer is not self._layer]


def get(name: str, default: Any = None) -> Any:
    """Look a setting up; None means that it was not set.

    Raises
    ------
    ConfigError
        If there is no such setting, or what was found cannot be its value; or if a file of settings says
        what it must not.
    """
    if name not in SETTINGS:
        raise ConfigError(no_setting(name))
    for source in sources(name):
        if source.value is not None and not source.elsewhere:
            check(name, source.value, source.where)
            return default if _is_auto(name, source.value) else source.value
    return default


def _is_auto(name: str, value: Any) -> bool:
    return name == "num_workers" and isinstance(value, str) and value == AUTO


def refresh() -> None:
    """Have files of settings read anew when the next setting is looked up."""
    global _files  # noqa: PLW0603 - there is one set of files for the process
    with _lock:
        _files = None


def sources(name: str) -> Iterator[Source]:
    """Tell all that is said about a setting, what goes first first.

    Parameters
    ----------
    name
        Of a setting that there is.

    Yields
    ------
    Source
        Values are as they were given: checked where they come from files, which are read only once nothing
        else decides, and not where they come from elsewhere.

    Raises
    ------
    ConfigError
        If a file of settings, or Dask's configuration, says what it must not.
    """
    yield from (Source("graphmill.config.set", layer.get(name)) for layer in reversed([*_layers]))
    yield Source("the command line", options.get(name))
    variable = _PREFIX + name.upper()
    yield Source(f"the environment variable {variable}", read_text(name, os.environ.get(variable, "")))
    yield from _from_dask(name)
    for file in reversed(settings_files()):
        for section in reversed(file.sections):
            if name in section.values:
                elsewhere = not section.holds_for(files.machine_name())
                yield Source(file.where(section, name), section.values[name], elsewhere)


def _from_dask(name: str) -> Iterator[Source]:
    # Dask's settings can only have been made by somebody who has loaded Dask.
    dask_config = sys.modules.get("dask.config")
    if dask_config is None:
        return
    for key in dask_config.get("graphmill", None) or ():
        if key.replace("-", "_") not in SETTINGS:
            raise ConfigError(f"dask.config 'graphmill.{key}': {no_setting(key)}")
    for key in (f"graphmill.{name}", name):
        yield Source(f"dask.config {key!r}", dask_config.get(key, None))


def settings_files() -> list[files.SettingsFile]:
    """Get the files there are, the user's before the project's.

    Raises
    ------
    ConfigError
        If one of them cannot be read, or says what it must not.
    """
    global _files  # noqa: PLW0603 - as above
    with _lock:
        if _files is None:
            _files = files.load()
            for problem in unknown_variables():
                logger.warning("%s", problem)
        return _files


def unknown_variables() -> list[str]:
    """Find environment variables that look like settings and are none, and say so."""
    names = {name: _PREFIX + name.upper() for name, setting in SETTINGS.items() if setting.is_text}
    problems = []
    for variable in os.environ:
        if variable.startswith(_PREFIX) and variable not in (*names.values(), *_OTHER_VARIABLES):
            hint = did_you_mean(variable.removeprefix(_PREFIX), names)
            for name, known in names.items():
                hint = hint.replace(repr(name), known)
            problems.append(f"the environment variable {variable} sets nothing{hint}")
    return problems
