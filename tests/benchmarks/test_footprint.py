"""What is measured of a program is what it takes: with all that it starts, shared memory once."""

import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.footprint import PROC, ProgramFailed, file_systems_in_memory, watch

MB = 1 << 20

linux = pytest.mark.skipif(not PROC.is_dir(), reason="memory is only measured where /proc tells")


def watched(source, **options):
    return watch([sys.executable, "-c", textwrap.dedent(source)], **options)


#: Ends only when it was looked at: after the first look at a file of the parent's.
HOLD = """
import os, sys, time
def hold(path):
    open(path + ".ready", "w").close()
    end = time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < end:
        time.sleep(0.01)
"""


class Release:
    """Lets a program go on once it was looked at some times after it was ready."""

    def __init__(self, path):
        self.path = path
        self.left = 3

    def __call__(self, seconds, peak):
        if Path(f"{self.path}.ready").exists():
            self.left -= 1
            if self.left == 0:
                self.path.touch()


@pytest.fixture
def seen_holding(tmp_path):
    """Run a program that calls `hold(path)` when it has all its memory."""

    def run(source):
        path = tmp_path / f"go-on-{len(list(tmp_path.iterdir()))}"
        return watched(f"{HOLD}\npath = {str(path)!r}\n{textwrap.dedent(source)}", tell=Release(path))

    return run


@linux
def test_private_memory(seen_holding):
    empty = seen_holding("hold(path)")
    full = seen_holding(f"data = b'x' * {50 * MB}; hold(path)")
    assert 45 * MB < full.peak.private - empty.peak.private < 60 * MB
    assert full.peak.arenas == 0
    assert full.seconds > 0


@linux
def test_pages_that_forks_share_count_once(seen_holding):
    found = seen_holding(
        f"""
        data = b"x" * {50 * MB}
        child = os.fork()
        hold(path)
        if child:
            os.waitpid(child, 0)
        """
    )
    assert 50 * MB < found.peak.private < 80 * MB


@linux
def test_memory_of_a_child(seen_holding):
    found = seen_holding(
        f"""
        child = os.fork()
        if not child:
            data = b"x" * {50 * MB}
            hold(path)
        else:
            os.waitpid(child, 0)
        """
    )
    assert 50 * MB < found.peak.private < 80 * MB


@linux
def test_arenas_count_once_and_only_if_they_belong_to_the_program(seen_holding):
    found = seen_holding(
        f"""
        from graphmill.memory.arena import Arena
        with Arena.create(0, {1000 * MB}) as arena:
            arena.reserve(0, {20 * MB})
            arena.shared[:{20 * MB}] = bytes({20 * MB})
            child = os.fork()
            hold(path)
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        """
    )
    assert found.peak.arenas == 20 * MB


ARENA = f"""
from pathlib import Path
from graphmill.memory.arena import Arena
def filled(folder=None):
    arena = Arena.create(0, {1000 * MB}, folder)
    arena.reserve(0, {20 * MB})
    return arena
"""


@linux
def test_arenas_count_for_as_long_as_they_are_open_somewhere(seen_holding):
    found = seen_holding(
        f"""{ARENA}
first, second = filled(), filled()
first.handle.unlink()  # as it goes on when whoever made it has died
child = os.fork()
if not child:
    hold(path)
    os._exit(0)
second.close()
os.waitpid(child, 0)
        """
    )
    assert found.peak.arenas == 40 * MB


@linux
def test_arenas_in_files_on_a_disk_do_not_count(seen_holding, tmp_path):
    if tmp_path.stat().st_dev in set(file_systems_in_memory()):
        pytest.skip("the folder for temporary files lies in memory")
    found = seen_holding(f"{ARENA}\nwith filled(Path({str(tmp_path)!r})):\n    hold(path)")
    assert found.peak.arenas == 0
    assert found.peak.private < 200 * MB


def test_what_takes_too_long_is_ended():
    with pytest.raises(ProgramFailed, match="said:\nhere") as failed:
        watched("print('here', flush=True); import time; time.sleep(600)", time_limit=2)
    assert failed.value.code < 0
    assert failed.value.footprint.seconds < 60


def test_output_comes_with_the_result():
    assert watched("print('said')").output == "said\n"


def test_a_failure_says_what_was_printed():
    with pytest.raises(ProgramFailed, match=r"ended with 1 and said:(?s:.*)ValueError: no"):
        watched("raise ValueError('no')")


def test_nothing_runs_on_if_watching_ends():
    def tell(seconds, peak):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched("import time; time.sleep(600)", tell=tell)
