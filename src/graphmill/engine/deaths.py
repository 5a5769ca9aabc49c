"""What users are told of tasks that were given up: whose worker died again and again, or that took too long.

Puts words together, and decides nothing.
"""

from __future__ import annotations

import signal
from typing import Any

from graphmill.errors import TaskTimeout, WorkerDied
from graphmill.types import Key
from graphmill.workers.messages import Died


def describe(died: Died) -> str:
    """Say how a worker ended."""
    if died.signal is not None:
        return f"process {died.pid}, killed by signal {died.signal}, {_name(died.signal)}"
    return f"process {died.pid}, exit code {died.exitcode}"


def _name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return "which has no name"


def worker_died(key: Key, node: Any, died: Died, deaths: int, memory: int | None) -> WorkerDied:
    """Make the error for a task whose worker died once too often.

    Parameters
    ----------
    key, node
        The task.
    died
        How its worker ended at last.
    deaths
        How many have.
    memory
        The private memory that the worker was last seen to have, in bytes; None if it was never seen.
    """
    function = function_of(node)
    seen = "" if memory is None else f" It was last seen with {memory / 1e6:,.0f} MB of its own."
    times = "once" if deaths == 1 else f"{deaths} times"
    return WorkerDied(
        f"A worker died while it ran the task {key!r}, which calls {function} ({describe(died)}).{seen} "
        f"The task was run {times}; retries sets how often it is run again. {died_of(died)}",
        key=key,
        function=function,
        exitcode=died.exitcode,
        signal=died.signal,
        memory=memory,
    )


def took_too_long(key: Key, node: Any, limit: float) -> TaskTimeout:
    """Make the error for a task that took longer than it may."""
    return TaskTimeout(
        f"The task {key!r}, which calls {function_of(node)}, took longer than the {limit:g} s of its "
        "task_timeout, and was stopped. If it needs more time, set a larger one."
    )


def died_of(died: Died) -> str:
    """Say what a user can do about a worker's death."""
    if died.signal == signal.SIGKILL:
        return (
            "Whoever sent SIGKILL, it is mostly the system, for want of memory: use smaller chunks, fewer "
            "workers, or a smaller memory_limit."
        )
    if died.signal is not None:
        return "A crash in compiled code does that: run the task with the synchronous scheduler to see where."
    return "Something in the task ended its process, such as os._exit: raise an exception instead."


def function_of(node: Any) -> str:
    """Name the function that a task calls; of a fused one, the functions."""
    names = list(dict.fromkeys(_functions(node)))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")  # noqa: PLR2004 - enough to know it by
    return shown or "no function"


def _functions(node: Any) -> list[str]:
    spec = getattr(node, "spec", None)
    if isinstance(spec, tuple) and spec and callable(spec[0]):
        return [_name_of(spec[0])]  # a task written as a tuple
    inner = [
        name
        for argument in getattr(node, "args", ())
        if isinstance(argument, dict)
        for part in argument.values()
        if hasattr(part, "func")
        for name in _functions(part)
    ]
    function = getattr(node, "func", None)
    if inner or function is None:
        return inner
    return [_name_of(function)]


def _name_of(function: Any) -> str:
    while hasattr(function, "func"):  # functools.partial, and Dask's likes of it
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return name if module in {None, "builtins", "__main__"} else f"{module}.{name}"
