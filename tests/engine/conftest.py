"""Every test here is checked for what it leaves behind: segments, folders, processes, threads."""

import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

import graphmill
from graphmill.engine import Engine

SOURCE = str(Path(graphmill.__file__).parents[1])
SHARED_MEMORY = Path("/dev/shm")
#: Seconds until a script must have ended.
LIMIT = 60


def leftovers():
    """List what this process has in shared memory and temporary folders."""
    return sorted(left_of(os.getpid()))


def traces():
    """What this process has running and on disk."""
    return {
        "segments and folders": leftovers(),
        "children": {child.pid for child in psutil.Process().children(recursive=True)},
        # Zarr keeps threads of its own.
        "threads": {
            thread.name for thread in threading.enumerate() if not thread.name.startswith(("zarr", "asyncio"))
        },
    }


def new_traces(before):
    """What there is now that was not there before: what others have left may go meanwhile."""
    now = traces()
    return {
        name: sorted(set(now[name]) - set(before[name])) for name in now if set(now[name]) - set(before[name])
    }


def limit_beyond(room, workers):
    """A memory limit that leaves so many bytes, whatever this process and its workers take."""
    with Engine(workers) as engine:
        engine.get({("x", i): (abs, i) for i in range(10 * workers)}, [("x", 0)])
        return engine.memory().private + room


@pytest.fixture(scope="module")
def engine():
    """An engine of two workers that keeps no warm memory, shared by the tests of a module."""
    before = traces()
    with Engine(2, warm_limit=0) as made:
        yield made
    gc.collect()
    assert traces() == before


@pytest.fixture
def script():
    """Run a script in a fresh interpreter, and check that nothing is left of it; returns what it printed.

    What was started while the interpreter ended goes after it, in `patience` seconds at most.
    """

    def run(source, *, returncode=0, stdin=False, folder=None, errors=False, patience=0.0):
        arguments = [sys.executable, "-"] if stdin else [sys.executable, "-c", source]
        if folder is not None:
            path = folder / "script.py"
            path.write_text(source)
            arguments = [sys.executable, str(path)]
        process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )
        out, err = process.communicate(source if stdin else None, timeout=LIMIT)
        assert process.returncode == returncode, err
        if not errors:
            assert err == ""
        deadline = time.monotonic() + patience
        while left_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left_of(process.pid) == []
        return out

    return run


def left_of(pid):
    """List segments and folders that a process has left."""
    return [
        path.name
        for folder in (SHARED_MEMORY, Path(tempfile.gettempdir()))
        if folder.is_dir()
        for path in folder.glob(f"graphmill-{pid}-*")
    ]
