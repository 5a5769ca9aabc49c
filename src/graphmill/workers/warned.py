"""Warnings that tasks give, on their way to the process whose filters decide what becomes of them."""

from __future__ import annotations

import inspect
import pickle
import warnings
from collections.abc import Iterable
from typing import TextIO

from graphmill.workers.work import Warned

#: Warnings of one task that travel, of each place in the code one.
_LIMIT = 1_000


class WarningLog:
    """Notes warnings in a worker."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, str, int, type]] = set()
        self._found: list[Warned] = []

    def install(self) -> None:
        """Note all warnings from now on, whatever filters say: those of the engine's process count."""
        warnings.simplefilter("always")
        warnings.showwarning = self._note

    def _note(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002 - as warnings calls it
        line: str | None = None,  # noqa: ARG002 - as above
    ) -> None:
        place = (str(message), filename, lineno, category)
        if place in self._seen or len(self._seen) >= _LIMIT:
            return
        self._seen.add(place)
        warning = message if isinstance(message, Warning) else category(message)
        self._found.append(Warned(_packed(warning, place[0]), filename, lineno, _module_at(filename)))

    def take(self) -> tuple[Warned, ...]:
        """Get what was noted since last asked."""
        found = tuple(self._found)
        if found:
            self._found.clear()
            self._seen.clear()  # a warning of the next run is to be seen again
        return found


def _packed(warning: Warning, text: str) -> bytes:
    try:
        return pickle.dumps(warning)
    except Exception:  # noqa: BLE001 - its class may be anything
        return pickle.dumps(RuntimeWarning(f"{type(warning).__name__}: {text}"))


def _module_at(filename: str) -> str | None:
    """Find the module that a warning is given for: it is among the callers."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != filename:
        frame = frame.f_back
    return None if frame is None else frame.f_globals.get("__name__")


def warn_again(found: Iterable[Warned], given: set[Warned]) -> None:
    """Give warnings again in this process, for its filters to decide.

    Parameters
    ----------
    found
        Warnings that workers sent.
    given
        Those that were given already: the same for a whole run, so that each is seen once.

    Raises
    ------
    Warning
        One of them, if filters make errors of such.
    """
    for each in found:
        if each in given:
            continue
        given.add(each)
        message, filename, line, module = each
        try:
            warning: Warning = pickle.loads(message)  # noqa: S301 - our own process wrote it
        except Exception as error:  # noqa: BLE001 - its class may not exist here
            warning = RuntimeWarning(f"A warning of a task cannot be shown here: {error}")
        warnings.warn_explicit(warning, None, filename, line, module)
