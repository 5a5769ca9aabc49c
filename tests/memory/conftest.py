"""What the tests of shared memory have in common: each is checked for what it leaves behind."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import graphmill
from graphmill.memory.numpy_handler import LIBRARY, find_interface, load_library
from graphmill.memory.segments import SHARED_MEMORY

SOURCE = str(Path(graphmill.__file__).parents[1])
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")]),
    "OPENBLAS_NUM_THREADS": "1",  # some scripts fork, and Python warns where there are threads
}


def own_segments(pid):
    """The segments that a process has left in shared memory, where the system lists them."""
    if not SHARED_MEMORY.is_dir():
        return []
    return [path.name for path in SHARED_MEMORY.glob(f"graphmill-{pid}-*")]


def open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.fixture(scope="session")
def files():
    """How many files may be open before a test."""
    return [open_files()]


@pytest.fixture(autouse=True)
def _nothing_stays(files):
    # The fixtures of a test are let go of only after it, so descriptors are counted before the next.
    if open_files() > files[0]:
        gc.collect()
    before, files[0] = files[0], max(files[0], open_files())
    assert files[0] == before, "the test before this one left files open"
    yield
    assert own_segments(os.getpid()) == []


@pytest.fixture
def script():
    """Run a script in a fresh interpreter; its errors must be empty. Returns what it printed."""

    def run(source, *arguments, before=(), returncode=0, stderr=""):
        run = subprocess.run(
            [*before, sys.executable, "-W", "error", "-c", source, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=ENVIRONMENT,
        )
        assert (run.returncode, run.stderr) == (returncode, stderr)
        return run.stdout

    return run


@pytest.fixture(scope="session")
def needs_handler():
    """Skip where NumPy cannot be given a handler."""
    if find_interface() is None:
        pytest.skip("this NumPy takes no handler")
    if load_library(LIBRARY) is None:
        pytest.skip("graphmill was built without a compiler")


@pytest.fixture(scope="session")
def small_shared_memory():
    """What to put before a command that is to find 1 MiB of shared memory: a mount only it can see."""
    mount = ["sh", "-c", 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh"]
    for options in (["--mount"], ["--mount", "--user", "--map-root-user"]):
        command = [shutil.which("unshare") or "false", *options, *mount]
        if subprocess.run([*command, "true"], capture_output=True, check=False, timeout=60).returncode == 0:
            return command
    return pytest.skip("nothing can be mounted here")
