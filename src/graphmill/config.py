"""Settings that may come from elsewhere than an argument.

In order: `set` in this process, environment variables ``GRAPHMILL_<NAME>``, and, where Dask has
been loaded, ``dask.config`` under ``graphmill.<name>`` and then under the plain name that Dask's own
schedulers read.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from graphmill.errors import ConfigError

#: The settings there are, and what each must be.
SETTINGS: Final[dict[str, tuple[type, ...]]] = {
    "cache": (object,),
    "rerun_exceptions_locally": (bool,),
    "num_workers": (int,),
    "memory_limit": (int, str, float),
    "warm_limit": (int, str),
    "spill_folder": (str,),
    "spill_limit": (int, str),
}

_chosen: ContextVar[dict[str, Any]] = ContextVar("graphmill_config")
_MISSING: Final = object()


@contextmanager
def set(**settings: Any) -> Iterator[None]:  # noqa: A001 - the name that Dask's users know
    """Choose settings for the enclosed block.

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
    for name, value in settings.items():
        _check(name, value, "graphmill.config.set")
    token = _chosen.set({**_chosen.get({}), **settings})
    try:
        yield
    finally:
        _chosen.reset(token)


def get(name: str, default: Any = None) -> Any:
    """Look a setting up; None means that it was not set.

    Raises
    ------
    ConfigError
        If there is no such setting, or what was found cannot be its value.
    """
    if name not in SETTINGS:
        raise ConfigError(_unknown(name))
    for source, value in _sources(name):
        if value is not None and value is not _MISSING:
            _check(name, value, source)
            return value
    return default


def _sources(name: str) -> Iterator[tuple[str, Any]]:
    yield "graphmill.config.set", _chosen.get({}).get(name)
    variable = f"GRAPHMILL_{name.upper()}"
    yield f"the environment variable {variable}", _parsed(name, os.environ.get(variable))
    # Dask's settings can only have been made by somebody who has loaded Dask.
    dask_config = sys.modules.get("dask.config")
    if dask_config is not None:
        for key in (f"graphmill.{name}", name):
            yield f"dask.config {key!r}", dask_config.get(key, None)


def _parsed(name: str, text: str | None) -> Any:
    if not text:  # an empty variable is the usual way to say that there is none
        return None
    if SETTINGS[name] == (str,):
        return text  # a folder may be called 2024, or None
    try:
        return ast.literal_eval(text.strip().capitalize() if text.lower() in _BOOLS else text)
    except (ValueError, SyntaxError):
        return text


_BOOLS = ("true", "false", "none")


def _check(name: str, value: Any, source: str) -> None:
    if name not in SETTINGS:
        raise ConfigError(_unknown(name))
    if name == "cache" and value is not None and not hasattr(value, "__setitem__"):
        raise ConfigError(f"'cache' must be a mapping, but {source} gives {value!r}")
    allowed = SETTINGS[name]
    fits = isinstance(value, allowed) and not (isinstance(value, bool) and int in allowed)
    if value is not None and not (fits or object in allowed):
        raise ConfigError(
            f"{name!r} must be {' or '.join(cls.__name__ for cls in allowed)}, but {source} gives {value!r}"
        )


def _unknown(name: str) -> str:
    return f"There is no setting {name!r}; there are {', '.join(sorted(SETTINGS))}"
