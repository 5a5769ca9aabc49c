"""Every test here is checked for what it leaves behind: processes, threads, descriptors, settings."""

import gc
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from graphmill.workers import preload
from graphmill.workers.pool import Pool

#: Seconds until a test gives up waiting for what must happen.
LIMIT = 60


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    gc.collect()  # so that nothing of other tests goes meanwhile
    before = traces()
    yield
    # What others have left may go meanwhile: an engine ends in the background when its last call has.
    after = traces()
    assert {name: new(after[name], before[name]) for name in ("descriptors", "children", "threads")} == {
        "descriptors": {},
        "children": set(),
        "threads": set(),
    }
    assert after["handler"] == before["handler"]
    assert after["environment"] == before["environment"]


def new(after, before):
    """Get what is there that was not there before."""
    if isinstance(after, set):
        return after - before
    return {name: value for name, value in after.items() if before.get(name) != value}


def traces():
    """What this process has open, running and changed."""
    return {
        "descriptors": {number: link for number, link in descriptors().items() if "pytest" not in link},
        "children": {child.pid for child in psutil.Process().children(recursive=True)},
        "threads": {thread.name for thread in threading.enumerate()},
        "handler": signal.getsignal(signal.SIGINT),
        "environment": {name for name in os.environ if not name.startswith("PYTEST_")},
    }


def descriptors():
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[path.name] = str(path.readlink())
        except FileNotFoundError:
            continue  # the one that listed them
    return found


@pytest.fixture
def make_pool(monkeypatch):
    """Make pools whose workers find the module `serving`, and close them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr(preload, "_start_threads", set())
    pools = []

    def make(num_workers=1, *, serve="serving:echo", preload=(), **kwargs):
        pool = Pool(num_workers, serve=serve, preload=preload, **kwargs)
        pools.append(pool)
        return pool

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def collect():
    """Poll until there are so many events."""

    def until(pool, count):
        events = []
        deadline = time.monotonic() + LIMIT
        while len(events) < count:
            assert time.monotonic() < deadline, f"only {events!r} so far"
            events += pool.poll(deadline - time.monotonic())
        return events

    return until


@pytest.fixture
def ask(collect):
    """Send a message to a worker, and give what comes back."""

    def once(pool, *message, worker=0):
        pool.send(worker, message)
        [(number, reply)] = collect(pool, 1)
        assert number == worker
        return reply

    return once
