"""Recordings made by hand, so that nothing depends on time."""

import pytest

from benchmarks.browser import CHROMIUM, Browser
from graphmill.diagnostics.log import CALLER, Entry, Loss, Move, Outcome, RunLog
from graphmill.diagnostics.records import record_runs
from graphmill.diagnostics.watch import Glance

MB = 1_000_000


def glance(time, **amounts):
    values = dict.fromkeys("private arenas live warm on_disk spilled read_back busy peak".split(), 0)
    return Glance(time=time, limit=800 * MB, **{**values, **amounts})


def done(key, worker, began, seconds, nbytes=0, copied=0, outcome=Outcome.DONE):
    return Entry(key, worker, began, seconds, nbytes, nbytes, copied, outcome)


@pytest.fixture
def log():
    """A run of two workers that starts at 100 s: two blocks loaded, one again, summed, put together here."""
    return RunLog(
        entries=[
            done(("load-1a", 0), 0, 100.0, 1.0, 8 * MB),
            done(("load-1a", 1), 1, 100.0, 0.5, outcome=Outcome.REFUSED),
            done(("load-1a", 1), 1, 100.5, 1.0, 8 * MB, copied=8 * MB),
            done(("sum-2b", 0), 0, 101.0, 0.25, 100),
            done(("sum-2b", 1), 1, 102.0, 0.25, 100),
            done("total-3c", CALLER, 102.5, 0.5),
        ],
        began=99.5,
        ended=103.0,
        moves=[Move(("load-1a", 0), 101.5, 0.125, 8 * MB)],
        losses=[Loss(("sum-2b", 1), 101.75, 1, "process 7, killed by signal 9")],
        keys=[("load-1a", 0), ("load-1a", 1), ("sum-2b", 0), ("sum-2b", 1), "total-3c"],
        dependencies={
            ("load-1a", 0): set(),
            ("load-1a", 1): set(),
            ("sum-2b", 0): {("load-1a", 0)},
            ("sum-2b", 1): {("load-1a", 1)},
            "total-3c": {("sum-2b", 0), ("other", 1)},
        },
        aliases={("other", 1): ("sum-2b", 1)},
    )


@pytest.fixture
def glances():
    return [
        glance(99.5, private=100 * MB),
        glance(101.0, private=200 * MB, arenas=24 * MB, live=16 * MB, warm=8 * MB, busy=2),
        glance(103.0, private=150 * MB, arenas=8 * MB, live=8 * MB, on_disk=8 * MB, spilled=8 * MB),
    ]


@pytest.fixture
def recording(log, glances):
    return record_runs(2, [log], glances, origin=99.0)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One for all tests of a module, since it takes long to start."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture
def browser(chromium):
    """A browser that has shown nothing yet."""
    chromium.begin()
    return chromium
