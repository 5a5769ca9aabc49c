"""The settings there are, what each may be, and what is said where something else is given.

Knows how values are written. Must not know where they come from.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from graphmill.errors import ConfigError
from graphmill.machine import parse_bytes, parse_limit

#: No engine runs with less memory, in bytes: processes take about as much that do nothing.
LEAST_MEMORY: Final = 64 << 20
#: Stands for the default, where something else was set elsewhere.
AUTO: Final = "auto"
#: More than any machine has: a part of it is only looked at for its form.
_ENDLESS: Final = 1 << 62

_AMOUNT: Final = 'a number of bytes, or a text such as "800MB", "4 GB" or "1.5GiB"'


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting."""

    #: What it is called, in Python and everywhere else.
    name: str
    #: What it is for, in a few words.
    what: str
    #: What it may be, to go after "must be".
    allowed: str
    #: What holds where nothing is set, in words.
    default: str
    #: Tells whether a value can be used.
    fits: Callable[[Any], bool]
    #: Whether it can be written in files and given on the command line.
    is_text: bool = True


def _is_number_of_workers(value: Any) -> bool:
    return value == AUTO or (type(value) is int and value >= 1)


def _reads(read: Callable[[Any], int], value: Any, least: int) -> bool:
    try:
        return read(value) >= least
    except ConfigError:
        return False


def _is_limit(value: Any) -> bool:
    is_part = isinstance(value, str) and "%" in value
    return _reads(lambda v: parse_limit(v, _ENDLESS), value, 1 if is_part else LEAST_MEMORY)


def _is_amount(value: Any) -> bool:
    return _reads(parse_bytes, value, 1)


def _is_amount_or_zero(value: Any) -> bool:
    return (type(value) is int and value == 0) or _is_amount(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: Any) -> bool:
    return hasattr(value, "__setitem__")


#: By name, in the order in which they are shown.
SETTINGS: Final[dict[str, Setting]] = {
    setting.name: setting
    for setting in (
        Setting(
            "num_workers",
            "how many worker processes",
            f'a whole number of at least 1, or "{AUTO}"',
            "one per CPU, if there is memory for it",
            _is_number_of_workers,
        ),
        Setting(
            "memory_limit",
            "the most memory that everything together may take",
            f'{_AMOUNT} (at least {LEAST_MEMORY >> 20}MiB), or a part of what there is such as "60%"',
            "80% of what there is",
            _is_limit,
        ),
        Setting(
            "memory_per_worker",
            "the memory that there must be for each worker where num_workers is not set",
            _AMOUNT,
            "256MiB, two of Dask's chunks",
            _is_amount,
        ),
        Setting(
            "warm_limit",
            "idle memory kept for the next blocks",
            f"{_AMOUNT}, or 0",
            "64MiB per worker",
            _is_amount_or_zero,
        ),
        Setting(
            "spill_folder",
            "where blocks go on disk when memory is short",
            "the name of a folder",
            "a temporary folder on a fast disk",
            _is_name,
        ),
        Setting(
            "spill_limit",
            "the most that may be on disk; 0 for nothing",
            f"{_AMOUNT}, or 0",
            "what the disk has room for",
            _is_amount_or_zero,
        ),
        Setting(
            "retries",
            "how often a task is run again whose worker has died",
            "a whole number of at least 0",
            "3",
            lambda value: type(value) is int and value >= 0,
        ),
        Setting(
            "task_timeout",
            "seconds after which a task is stopped",
            "a number above 0",
            "none",
            lambda value: type(value) in {int, float} and value > 0,
        ),
        Setting(
            "recompute",
            "whether chunks are read again from Zarr on disk where that is quicker than to move them to disk",
            "true or false",
            "true",
            _is_bool,
        ),
        Setting(
            "rerun_exceptions_locally",
            "whether a task that has failed is run again in the calling process, for a debugger",
            "true or false",
            "false",
            _is_bool,
        ),
        Setting(
            "cache",
            "values that are there already; results are added to it",
            "a mapping",
            "none",
            _is_mapping,
            is_text=False,
        ),
    )
}

#: What files may call settings, besides by their names.
ALIASES: Final = {"workers": "num_workers"}


def check(name: str, value: Any, source: str) -> None:
    """See that there is such a setting and that it can have a value; None, for "not set", always can.

    Raises
    ------
    ConfigError
        If not; it says what may be given, and that `source` gives something else.
    """
    setting = SETTINGS.get(name)
    if setting is None:
        raise ConfigError(no_setting(name))
    if value is not None and not setting.fits(value):
        raise ConfigError(f"{name!r} must be {setting.allowed}, but {source} gives {value!r}")


def no_setting(name: str, names: Iterable[str] = SETTINGS) -> str:
    """Say that there is no setting of a name, and which there are.

    Examples
    --------
    >>> no_setting("spil_limit", ["spill_limit", "cache"])
    "There is no setting 'spil_limit' (did you mean 'spill_limit'?); there are cache, spill_limit"
    """
    return f"There is no setting {name!r}{did_you_mean(name, names)}; there are {', '.join(sorted(names))}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Ask whether another word was meant, if one is much alike; else say nothing.

    Examples
    --------
    >>> did_you_mean("memory-limit", ["memory_limit", "cache"]), did_you_mean("x", ["cache"])
    (" (did you mean 'memory_limit'?)", '')
    """
    near = difflib.get_close_matches(word.lower(), list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def read_text(name: str, text: str) -> Any:
    """Read a value as it stands in an environment variable, or on the command line.

    Returns
    -------
    object
        None for "none" and for an empty text, which is the usual way to say that a variable is not set.
    """
    if not text:
        return None
    if name == "spill_folder":
        return text  # a folder may be called 2024, or None
    try:
        return ast.literal_eval(text.strip().capitalize() if text.lower() in _NAMED else text)
    except (ValueError, SyntaxError):
        return text


_NAMED: Final = ("true", "false", "none")
