"""``graphmill run``: a user's program, with graphmill as Dask's default scheduler."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graphmill import diagnostics
from graphmill.cli import script
from graphmill.cli.options import chosen, take_settings
from graphmill.cli.output import complain
from graphmill.cli.worker import connect_limit, need_distributed
from graphmill.diagnostics.amounts import of_bytes, of_count, of_seconds
from graphmill.diagnostics.display import Display, display_for, progress
from graphmill.diagnostics.log import RunLog
from graphmill.diagnostics.tracker import Picture
from graphmill.diagnostics.watch import Watched, unwatch, watch
from graphmill.errors import CommandError, MissingExtra, NotRecorded


def run(arguments: argparse.Namespace) -> int:
    """Run a program; returns its exit code."""
    take_settings(arguments)
    _see_that_options_fit(arguments)
    for path in (arguments.report, arguments.trace):
        _see_that_it_can_be_written(path)
    if arguments.as_module:
        script.prepare(str(Path.cwd()))
        sys.argv[0] = "-m"  # as while Python looks for a module
        program = script.find_module(arguments.program)
    else:
        program = script.find_script(arguments.program)
    summary = Summary()
    shown = Diagnostics(arguments)
    try:
        with shown, summary:
            if arguments.cluster is None:
                become_the_default()
            else:
                shown.connect(arguments.cluster)
            code = script.execute(program, arguments.arguments)
    finally:
        # Also after Ctrl-C: that may be just when one wants to know.
        written = shown.write()
        if not arguments.quiet and arguments.cluster is None:
            complain(str(summary))
    return code if written else code or 1


def _see_that_options_fit(arguments: argparse.Namespace) -> None:
    """See that nothing is asked of a cluster that only this machine's engine has."""
    if arguments.cluster is None:
        return
    need_distributed("--cluster")
    names = [name for name in ("report", "trace", "dashboard", "progress") if getattr(arguments, name)]
    wrong = [*chosen(arguments), *(f"--{name}" for name in names)]
    if wrong:
        raise CommandError(
            f"{', '.join(wrong)} cannot be used with --cluster: the cluster's workers have settings of their "
            "own, and Dask's dashboard shows what they do"
        )


def _see_that_it_can_be_written(path: str | None) -> None:
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise CommandError(f"{path!r} cannot be written: there is no folder {str(folder)!r}")
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise CommandError(f"{path!r} cannot be written: choose the name of a file, in a folder of yours")


# ---- the scheduler


class Front:
    """`graphmill.get`, with `persist` beside it, loaded when it is first called.

    The engine needs NumPy; a program may set variables for that before it imports it.
    """

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute keys of a graph."""
        from graphmill.engine import front  # noqa: PLC0415 - see above

        return front.get(dsk, keys, **kwargs)

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute collections, and keep their chunks in shared memory."""
        from graphmill.engine import front  # noqa: PLC0415 - see above

        return front.persist(collections, optimize_graph, **kwargs)


def become_the_default() -> None:
    """Have Dask use graphmill where nothing else is said; without Dask there is nothing to do."""
    if importlib.util.find_spec("dask") is not None:
        import dask.config  # noqa: PLC0415 - optional

        dask.config.set(scheduler=Front().get)


# ---- what is shown


@dataclass(slots=True)
class Diagnostics:
    """What is recorded and shown of a program while it runs, as the options say."""

    arguments: argparse.Namespace
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _profile: diagnostics.profile | None = None

    def __enter__(self) -> Self:
        chosen = self.arguments
        if chosen.report is not None:
            _need("bokeh", "--report")
        if chosen.report is not None or chosen.trace is not None:
            self._profile = self._stack.enter_context(diagnostics.profile())
        if chosen.dashboard:
            page = self._stack.enter_context(diagnostics.dashboard())
            complain(f"live at {page.url}")
        shows = sys.stderr.isatty() if chosen.progress is None else chosen.progress
        if shows:
            self._stack.enter_context(progress(display=WithoutEnd(display_for(sys.stderr))))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def connect(self, address: str) -> None:
        """Have Dask use a cluster where nothing else is said, until the end."""
        distributed: Any = importlib.import_module("distributed")
        try:
            client = distributed.Client(address, timeout=connect_limit())
        except (OSError, TimeoutError, ValueError) as error:
            raise CommandError(f"The scheduler at {address} does not answer: {error}") from error
        self._stack.enter_context(client)

    def write(self) -> bool:
        """Write the files that were asked for; tell whether that went well."""
        if self._profile is None:
            return True
        chosen = {"report": self._profile.report, "trace": self._profile.trace}
        written = [self._write_one(name, write) for name, write in chosen.items()]
        return all(written)

    def _write_one(self, name: str, write: Callable[[str], None]) -> bool:
        path = getattr(self.arguments, name)
        if path is None:
            return True
        try:
            write(path)
        except NotRecorded:
            complain(f"no {name} was written, as the program ran no graph on graphmill")
        except OSError as error:
            complain(f"the {name} could not be written to {path!r}: {error.strerror or error}")
            return False
        return True


class WithoutEnd:
    """Shows progress, and leaves what there is to say at the end to the summary.

    Parameters
    ----------
    display
        What shows it.
    """

    def __init__(self, display: Display) -> None:
        self._display = display

    def show(self, picture: Picture) -> None:
        """Show how far it has come."""
        self._display.show(picture)

    def hide(self) -> None:
        """Show nothing."""
        self._display.hide()

    def end(self, picture: Picture, *, failed: bool) -> None:  # noqa: ARG002 - see above
        """Show nothing any more."""
        self._display.hide()


def _need(library: str, option: str) -> None:
    """See that a library is there before a program runs for hours."""
    if importlib.util.find_spec(library) is None:
        raise MissingExtra(f"{option} needs {library}, which is not installed: pip install 'graphmill[ui]'")


class Summary:
    """Counts what runs take, for one line at the end."""

    wants_entries = False

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        #: Logs of runs that had not ended when the last one began.
        self._logs: list[RunLog] = []
        #: What the others had.
        self._tasks = 0
        self._spilled = 0

    def __enter__(self) -> Self:
        watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unwatch(self)

    def on_run(self, engine: Watched, log: RunLog) -> None:  # noqa: ARG002 - the protocol's
        """Take in that a run begins."""
        with self._lock:
            self._count(only_ended=True)
            self._logs.append(log)

    def _count(self, *, only_ended: bool) -> None:
        left = []
        for log in self._logs:
            if only_ended and log.ended is None:
                left.append(log)
                continue
            self._tasks += sum(tally.count for tally in list(log.count().values()))
            self._spilled += sum(move.nbytes for move in list(log.moves))
        self._logs = left

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._began
        with self._lock:
            self._count(only_ended=False)
        peak = None
        if "graphmill.engine" in sys.modules:
            from graphmill.engine.open_engines import peak_memory  # noqa: PLC0415 - only if the program used it

            peak = peak_memory()
        if peak is None:
            return f"{of_seconds(seconds)}; the program ran no graph on graphmill"
        return (
            f"{of_seconds(seconds)}, {of_count(self._tasks, 'task')}, "
            f"peak memory {of_bytes(peak[0])} of {of_bytes(peak[1])}, {of_bytes(self._spilled)} spilled"
        )
