"""Systems that lack something: a clear error at the start, or another way with one warning."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from graphmill import Engine
from graphmill.engine.requirements import temporary_folder
from graphmill.errors import ConfigError
from tests.engine.conftest import LIMIT, SOURCE, left_of

PROGRAM = """
import logging, resource, sys
import numpy as np
import graphmill

logging.basicConfig(format="%(levelname)s", level=logging.WARNING, stream=sys.stdout)
{before}
try:
    with graphmill.Engine(2) as engine:
        dsk = {{("x", i): (np.full, 1_000_000, float(i)) for i in range(8)}}
        dsk["sum"] = (sum, [(np.sum, key) for key in list(dsk)])
        print(engine.get(dsk, "sum"))
except graphmill.errors.GraphmillError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def alone():
    """Run the program with file systems of its own, which a shell command mounts; return what it printed."""
    if not _may_mount():
        pytest.skip("needs the right to mount file systems")

    def run(mounts="true", before="", **environment):
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCE, **environment},
        )
        out, err = process.communicate(PROGRAM.format(before=before), timeout=LIMIT)
        assert (process.returncode, err) == (0, "")
        assert left_of(process.pid) == []
        return out

    return run


def _may_mount():
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


SMALL = "mount -t tmpfs -o size=1m none /dev/shm"


def test_shared_memory_that_is_small(alone):
    assert alone(SMALL) == "WARNING\n28000000.0\n"


def test_shared_memory_that_others_fill(alone):
    """There was room at the start, and then there is none: blocks go to a file."""
    before = """
start = graphmill.Engine._start

def fill(engine):
    start(engine)
    with open("/dev/shm/others", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1_090 << 20)

import os
graphmill.Engine._start = fill
"""
    assert alone("mount -t tmpfs -o size=1100m none /dev/shm", before) == "28000000.0\n"


def test_a_disk_that_is_full(alone, tmp_path):
    out = alone(f"{SMALL} && mount -t tmpfs -o size=10m none {tmp_path}", TMPDIR=str(tmp_path))
    assert out.startswith("WARNING\nArenaFull no room for")
    assert "smaller chunks or fewer workers" in out


def test_a_temporary_folder_that_cannot_be_written_to(alone, tmp_path):
    out = alone(
        f"mount -t tmpfs -o ro none {tmp_path}",
        before=f"import os; os.chdir('/proc'); import tempfile; tempfile.tempdir = {str(tmp_path)!r}",
    )
    assert out.startswith("ConfigError No files can be made in the folder")


def test_what_a_dead_engine_left_goes_when_the_next_one_starts(tmp_path):
    """As after a power cut; wherever an engine has files."""
    process = subprocess.Popen(["true"])
    process.wait()
    name = f"graphmill-{process.pid}-1-0"
    folders = [tmp_path / "base", tmp_path / "spill"]
    for folder in folders:
        (folder / name).mkdir(parents=True)
    segment = Path("/dev/shm", name)
    segment.touch()
    with Engine(1, folder=folders[0], spill_folder=folders[1]) as engine:
        assert engine.get({"x": (abs, -1)}, "x") == 1
        assert not segment.exists()
        assert not any((folder / name).exists() for folder in folders)


def test_no_temporary_folder(monkeypatch):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found in [...]")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(ConfigError, match=r"no folder for temporary files.*TMPDIR"):
        temporary_folder()
    with pytest.raises(ConfigError, match="no folder for temporary files"):
        Engine(1)


def test_a_system_without_proc(alone):
    assert alone("mount -t tmpfs none /proc") == "WARNING\n28000000.0\n"


@pytest.mark.parametrize("limit", [12, 20, 24])
def test_too_few_open_files(script, limit):
    source = PROGRAM.format(before=f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))")
    out = script(source)
    assert out.startswith(f"PoolError This process may have {limit} files open (ulimit -n)")


def test_open_files_that_just_suffice(script):
    """What is asked for at the start is enough for all that comes."""
    source = """
import resource
import numpy as np
from graphmill import Engine
from graphmill.engine import requirements

most = requirements._open_files() + requirements._FILES + 4 * requirements._FILES_PER_WORKER
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

with Engine(4) as engine:
    dsk = {("x", i): (np.full, 100_000, float(i)) for i in range(40)}
    dsk["sum"] = (sum, [(np.sum, key) for key in list(dsk)])
    for _ in range(10):
        assert engine.get(dsk, "sum") == 100_000 * sum(range(40))
print("done")
"""
    assert script(source) == "done\n"


@pytest.mark.parametrize("megabytes", [1_500, 4_000])
def test_an_address_space_that_is_limited(script, megabytes):
    before = f"resource.setrlimit(resource.RLIMIT_AS, ({megabytes << 20}, {megabytes << 20}))"
    assert script(PROGRAM.format(before=before)) == "28000000.0\n"


def test_limits_of_this_process_are_left_alone(engine):
    before = [resource.getrlimit(which) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)]
    engine.get({"x": (abs, -1)}, "x")
    assert [resource.getrlimit(which) for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)] == before
