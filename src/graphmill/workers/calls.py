"""A function with its arguments, as it travels to a worker outside any graph."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from graphmill.errors import SetupFailed

#: Tokens of the set-ups that have run in this process.
_set_up: set[str] = set()


class Setup(NamedTuple):
    """What is to be run once in each worker before any call that names it."""

    #: Tells one from another.
    token: str
    #: A function and its arguments, pickled.
    function: bytes


class Call(NamedTuple):
    """A function to call; it stands where a graph has a node."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    setup: Setup | None = None

    def __call__(self, values: Mapping[Any, Any]) -> Any:  # noqa: ARG002 - as nodes of graphs are called
        """Call it."""
        if self.setup is not None:
            set_up(self.setup)
        return self.function(*self.arguments, **self.keywords)


def set_up(setup: Setup) -> None:
    """Run what is to be run once in each process, unless it has.

    Raises
    ------
    SetupFailed
        If it raises anything.
    """
    if setup.token in _set_up:
        return
    try:
        function, arguments = pickle.loads(setup.function)  # noqa: S301 - from the engine's process
        function(*arguments)
    except Exception as error:
        name = type(error).__name__
        raise SetupFailed(f"The initializer of workers raised {name}: {error}") from error
    _set_up.add(setup.token)
