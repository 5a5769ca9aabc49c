"""Runs Dask's own tests, from the installed package, with `graphmill.get` as the scheduler.

`scripts/dask-suites` calls this. Tests that name a scheduler themselves keep it. What cannot work between
processes is listed in `dask_suites.md`, with the reasons; that list is read here, so that it cannot differ
from what is run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

import graphmill
from graphmill import engine

#: Names of suites, and where they lie in Dask's package.
SUITES = {
    "core": "tests",
    "bag": "bag/tests",
    "array": "array/tests",
    "dataframe": "dataframe/tests",
}
LIST = Path(__file__).with_name("dask_suites.md")
SHARED_MEMORY = Path("/dev/shm")
#: Seconds that a test may take; the longest compute hundreds of times.
PATIENCE = 300
#: As Dask has it for its tests, what it and NumPy warn of is an error; but not what libraries that are newer
#: than this Dask are about to change.
WARNINGS = """
    error:::dask[.*]
    error:::numpy[.*]
    default::DeprecationWarning
    ignore::pytest.PytestUnknownMarkWarning
"""
#: Marks that Dask's tests bear; its own list of them is not in its package.
MARKS = (
    "array_expr",
    "avoid_ci",
    "flaky",
    "gpu",
    "network",
    "normal_and_array_expr",
    "slow",
    "skip_with_pyarrow_strings",
    "xfail_with_pyarrow_strings",
)


@dataclass(frozen=True, slots=True)
class Exemption:
    """One row of the list."""

    #: For whole ids of tests, as the shell matches names.
    pattern: str
    #: Why the tests cannot pass.
    reason: str

    def fits(self, test: str) -> bool:
        """Tell whether a test is meant; brackets are taken literally."""
        return fnmatchcase(test, self.pattern.replace("[", "[[]"))


def read_list(text: str) -> list[Exemption]:
    """Read the table of tests that are left out.

    Raises
    ------
    ValueError
        If a row has no reason.
    """
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    found = []
    for row in rows[2:]:
        if len(row) != 2 or not all(row):
            raise ValueError(f"{LIST.name}: a row has a test and a reason, but this is {row}")
        found.append(Exemption(row[0].strip("`"), row[1]))
    return found


#: One for each computation.
_calls: list[None] = []


def counted_get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute with graphmill, and count that; a plain function, as `graphmill.get` is."""
    _calls.append(None)
    return graphmill.get(dsk, keys, **kwargs)


def use_in_comparisons(scheduler: Any) -> None:
    """Have Dask's `assert_eq` functions compute with a scheduler, where tests leave that open.

    By default they take the synchronous one, and most computations of these suites are theirs.
    """
    for name in ("dask.array.utils", "dask.bag.utils", "dask.dataframe.utils"):
        if name in sys.modules:
            function = sys.modules[name].assert_eq
            function.__defaults__ = tuple(
                scheduler if value == "sync" else value for value in function.__defaults__
            )


@dataclass(slots=True)
class Plugin:
    """What pytest calls."""

    #: Whether to leave Dask's own schedulers.
    baseline: bool
    exemptions: list[Exemption]
    run_slow: bool
    #: Whether tests of the list are left out (or only they are run).
    only_listed: bool = False
    #: What graphmill's logger said, or was found out after tests, with the test.
    notes: list[tuple[str, str]] = field(default_factory=list)
    unused: list[Exemption] = field(default_factory=list)
    current: str = ""
    _handler: logging.Handler | None = None

    def pytest_configure(self, config: pytest.Config) -> None:
        """Know Dask's marks."""
        for mark in MARKS:
            config.addinivalue_line("markers", f"{mark}: one of Dask's")
        self._handler = _NoteHandler(self)
        logging.getLogger("graphmill").addHandler(self._handler)

    def pytest_unconfigure(self) -> None:
        """Listen no more."""
        if self._handler is not None:
            logging.getLogger("graphmill").removeHandler(self._handler)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is listed, and skip what is slow or needs what is not here."""
        if not self.baseline:
            use_in_comparisons(counted_get)
        kept, left_out = [], []
        used: set[str] = set()
        for item in items:
            fitting = [each.pattern for each in self.exemptions if each.fits(item.nodeid)]
            used.update(fitting)
            (left_out if bool(fitting) != self.only_listed else kept).append(item)
            for mark in ("network", "gpu", *(() if self.run_slow else ("slow",))):
                if mark in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=f"marked as {mark}"))
            if os.geteuid() == 0 and _takes_permission_away(item):
                item.add_marker(pytest.mark.skip(reason="root may read everything"))
            if "mocker" in item.fixturenames and not config.pluginmanager.has_plugin("pytest_mock"):
                item.add_marker(pytest.mark.skip(reason="pytest-mock is not installed"))
        files = {item.nodeid.partition("::")[0] for item in items}
        self.unused = [
            each
            for each in self.exemptions
            if each.pattern not in used and each.pattern.partition("::")[0] in files
        ]
        items[:] = kept
        if left_out:
            config.hook.pytest_deselected(items=left_out)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Compute with graphmill while a test runs."""
        import dask

        self.current = item.nodeid
        with ExitStack() as stack:
            if not self.baseline:
                stack.enter_context(dask.config.set(scheduler=counted_get))
            result = yield
        if not self.baseline and (nextitem is None or nextitem.path != item.path):
            self._look_for_blocks(item.nodeid.partition("::")[0])
        return result

    def _look_for_blocks(self, file: str) -> None:
        """Note shared memory that is held after all tests of a file."""
        used = default_engine()
        if used is None:
            return
        gc.collect()
        used.look_after(())
        if used.blocks.live:
            self.notes.append((file, f"{used.blocks.live} bytes of blocks are held at its end"))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tell what was noted."""
        write = terminalreporter.write_line
        terminalreporter.section("graphmill")
        write(f"{len(_calls)} computations by graphmill.get")
        for where, what in self.notes:
            write(f"{where}: {what}")
        for each in self.unused:
            write(f"{LIST.name}: no test is called {each.pattern}")


def _takes_permission_away(item: pytest.Item) -> bool:
    """Say whether a test makes files that its own user may not read."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    return code is not None and "no_read_permissions" in code.co_names


class _NoteHandler(logging.Handler):
    """Notes warnings of graphmill's logger."""

    def __init__(self, plugin: Plugin) -> None:
        super().__init__(logging.WARNING)
        self._plugin = plugin

    def emit(self, record: logging.LogRecord) -> None:
        self._plugin.notes.append((self._plugin.current, record.getMessage()))


def default_engine() -> Any:
    """Get the engine that `graphmill.get` runs on; None if there is none."""
    default = engine._defaults.get(os.getpid())
    return None if default is None or default.engine is None or default.engine.closed else default.engine


def leftovers() -> list[str]:
    """Name shared memory of this process that is still there."""
    return [path.name for path in SHARED_MEMORY.glob(f"graphmill-{os.getpid()}-*")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run suites; the exit status is pytest's, or 1 if something was left behind."""
    parser = argparse.ArgumentParser(
        prog="scripts/dask-suites",
        description=__doc__.partition("\n\n")[0],
        usage="%(prog)s [options] [suite or file ...] [-- arguments for pytest]",
    )
    parser.add_argument(
        "suites",
        nargs="*",
        help=f"{', '.join(SUITES)}, or files such as array/tests/test_fft.py; all by default",
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes (2)")
    parser.add_argument("--baseline", action="store_true", help="use Dask's own schedulers, to compare with")
    parser.add_argument(
        "--listed", action="store_true", help=f"run just the tests that {LIST.name} leaves out"
    )
    parser.add_argument("--slow", action="store_true", help="run tests that Dask marks as slow, too")
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    options, more = parser.parse_args(given[:end]), given[end + 1 :]
    dask = importlib.util.find_spec("dask")
    if dask is None or dask.origin is None:
        parser.error("Dask is not installed")
    package = Path(dask.origin).parent
    paths = [package / SUITES.get(name, name.removeprefix("dask/")) for name in options.suites or SUITES]
    for path in paths:
        if not Path(str(path).partition("::")[0]).exists():
            parser.error(f"there is no {path}")

    # Dask's tests interrupt themselves; whatever a shell starts in the background would never notice.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["GRAPHMILL_NUM_WORKERS"] = str(options.workers)
    plugin = Plugin(options.baseline, read_list(LIST.read_text()), options.slow, options.listed)
    own = [
        *("-c", os.devnull, "--rootdir", str(package.parent), "-p", "no:cacheprovider"),
        *("-o", f"timeout={PATIENCE}", "-o", f"filterwarnings={WARNINGS}", "-rfE", "-q"),
    ]
    status = int(pytest.main([*own, *more, *map(str, paths)], plugins=[plugin]))
    if (used := default_engine()) is not None:
        used.close()
    if left := leftovers():
        print("left in shared memory:", *left)  # noqa: T201 - a result
        status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
