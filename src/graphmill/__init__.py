"""Runs Dask graphs on one machine.

Only public names live here. Importing the package starts nothing, changes nothing, and loads
neither Dask nor NumPy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphmill import config, graph, local, order

if TYPE_CHECKING:
    from graphmill.diagnostics import profile
    from graphmill.engine import Engine, get
    from graphmill.executor import Executor

__all__ = ["Engine", "Executor", "__version__", "config", "get", "graph", "local", "order", "profile"]

#: The one place where the version is written: the build reads it from here, and reading it costs
#: no look-up of the installed metadata.
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # The engine needs NumPy, which programs that only read graphs need not load.
    if name in ("Engine", "get"):
        from graphmill import engine  # noqa: PLC0415 - see above

        return getattr(engine, name)
    if name == "Executor":
        from graphmill import executor  # noqa: PLC0415 - as above

        return executor.Executor
    if name == "profile":
        from graphmill import diagnostics  # noqa: PLC0415 - as above

        return diagnostics.profile
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
