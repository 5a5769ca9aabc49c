"""How the template process is called: its command and its environment.

Works the answers out of what it is given, and starts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import graphmill.errors
from graphmill.errors import PoolError

#: One thread per worker: these libraries read the variables when they are loaded.
_ONE_THREAD: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMEXPR_MAX_THREADS",
    "NUMBA_NUM_THREADS",
    "BLOSC_NTHREADS",
    "RAYON_NUM_THREADS",
    "POLARS_MAX_THREADS",
)

#: jemalloc as such, in pyarrow, and in libraries written in Rust: its thread for returning memory
#: would run in the template, which must have no other thread when it forks.
_JEMALLOC: Final = ("MALLOC_CONF", "JE_ARROW_MALLOC_CONF", "_RJEM_MALLOC_CONF")

#: Interpreter options (-X) that would make every worker print, or slow it down.
_NOT_FOR_WORKERS: Final = frozenset({"importtime", "showrefcount", "showalloccount", "tracemalloc"})

#: Leaves no name in `__main__`: a function of the user's that was pickled as `__main__.main` must
#: not turn out to be something of ours.
_BOOTSTRAP: Final = (
    "__import__('sys').path[:] = {path!a}; "
    "__import__('graphmill.workers.template', fromlist=['main']).main({descriptor})"
)


def command(descriptor: int, path: Iterable[str]) -> list[str]:
    """Build the command line of the template process.

    Parameters
    ----------
    descriptor : int
        Its end of the control channel.
    path : iterable of str
        Where it looks for modules, graphmill among them.

    Raises
    ------
    PoolError
        If this process is not run by a Python interpreter that can be started again.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise PoolError(
            "Worker processes need a Python interpreter to run in, but this program does not say which it "
            f"runs in (sys.executable is {sys.executable!r}); schedulers that use no processes still work"
        )
    code = _BOOTSTRAP.format(path=search_path(path), descriptor=descriptor)
    return [sys.executable, *_interpreter_options(), "-c", code]


def search_path(path: Iterable[object]) -> list[str]:
    """Copy `sys.path`, and see that graphmill itself is found, however the parent came by it."""
    # The import system passes over entries that are no strings; so does this.
    entries = [entry for entry in path if isinstance(entry, str)]
    root = str(Path(graphmill.errors.__file__).parent.parent)
    return entries if root in entries else [*entries, root]


def _interpreter_options() -> list[str]:
    flags = sys.flags
    options = ["-O"] * flags.optimize + ["-b"] * flags.bytes_warning
    if flags.dont_write_bytecode:
        options.append("-B")
    if flags.no_user_site:
        options.append("-s")
    if flags.no_site:
        options.append("-S")
    for name, value in getattr(sys, "_xoptions", {}).items():
        if name not in _NOT_FOR_WORKERS:
            options += ["-X", name if value is True else f"{name}={value}"]
    for warning in sys.warnoptions:
        options += ["-W", warning]
    return options


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Build the environment of the template process from the parent's.

    Threads are left to the workers' number; hashes of strings agree between all workers, and with a
    parent that was started with a PYTHONHASHSEED of its own.
    """
    # Not -E: that would make the interpreter pass over the hash seed as well.
    skip = sys.flags.ignore_environment
    chosen = {key: value for key, value in environ.items() if not (skip and key.startswith("PYTHON"))}
    chosen.update(dict.fromkeys(_ONE_THREAD, "1"))
    for name in _JEMALLOC:
        chosen[name] = ",".join([*filter(None, [chosen.get(name)]), "background_thread:false"])
    if not chosen.get("PYTHONHASHSEED", "").isdecimal():
        chosen["PYTHONHASHSEED"] = "0"
    return chosen
