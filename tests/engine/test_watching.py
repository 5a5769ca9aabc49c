"""What runs leave in writing for those who watch."""

import os
import signal
import threading
import time
from operator import add

import numpy as np
import pytest
from dask._task_spec import Alias

from graphmill.diagnostics import watch
from graphmill.diagnostics.log import CALLER, Outcome, kind_of
from tests.engine.test_limit import joined, limited

BIG = 200_000  # elements of a float64 array that lies in shared memory for certain


class Watcher:
    def __init__(self, wants_entries=True):
        self.wants_entries = wants_entries
        self.logs = []

    def on_run(self, engine, log):
        self.logs.append(log)


@pytest.fixture
def watcher():
    made = Watcher()
    watch.watch(made)
    yield made
    watch.unwatch(made)


def by_key(log):
    return {entry.key: entry for entry in log.all_entries() if entry.outcome is Outcome.DONE}


def keep(kept=[]):  # noqa: B006 - it is kept on purpose
    kept.append(np.ones(BIG))
    return kept[-1]


def test_nothing_is_written_where_nobody_watches(engine):
    assert watch.begin_log(engine) is None


def test_each_task_has_an_entry(engine, watcher):
    before = time.perf_counter()
    dsk = {("x-1a", i): (np.full, BIG, i) for i in range(4)}
    dsk |= {("y-2b", i): (np.sum, ("x-1a", i)) for i in range(4)} | {"alias": Alias("alias", ("y-2b", 0))}
    engine.get(dsk, ["alias", *(("y-2b", i) for i in range(4))])
    after = time.perf_counter()
    (log,) = watcher.logs
    entries = by_key(log)
    assert entries.keys() == dsk.keys() - {"alias"}
    assert before <= log.began <= log.ended <= after
    for entry in entries.values():
        assert log.began <= entry.began
        assert entry.began + entry.seconds <= log.ended
        assert entry.worker in (0, 1)
    x = entries["x-1a", 1]
    assert x.nbytes >= BIG * 8
    assert x.taken >= BIG * 8
    assert x.copied == 0
    assert not log.tallies
    tally = log.count()["x-1a"]
    assert log.count() is log.tallies
    assert (tally.count, tally.seconds) == (
        4,
        pytest.approx(sum(entries["x-1a", i].seconds for i in range(4))),
    )
    assert log.totals() == {"x-1a": 4, "y-2b": 4}
    assert log.dependencies["y-2b", 3] == {("x-1a", 3)}
    assert not log.running()


def test_results_that_had_to_be_copied(engine, watcher):
    engine.get({"x": (keep,)}, "x")
    entry = by_key(watcher.logs[0])["x"]
    assert entry.copied >= BIG * 8


def test_tasks_of_the_callers_process(engine, watcher):
    held = threading.Lock()
    seen = []

    def locked(lock):
        seen.append((watcher.logs[0].running(), engine.glance().busy))
        return lock.locked()

    engine.get({"lock": held, "x": (locked, "lock")}, "x")
    entry = by_key(watcher.logs[0])["x"]
    assert entry.worker == CALLER
    assert seen == [({"x": 1}, 0)]
    assert not watcher.logs[0].running()


def test_failures(engine, watcher):
    with pytest.raises(ZeroDivisionError):
        engine.get({"x": (divmod, 1, 0)}, "x")
    (log,) = watcher.logs
    assert [(entry.key, entry.outcome) for entry in log.all_entries()] == [("x", Outcome.FAILED)]
    assert not log.count()
    assert log.ended is not None


def die_once(path):
    if path.exists():
        return 1
    path.mkdir()
    return os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_died(engine, watcher, tmp_path):
    assert engine.get({"x": (die_once, tmp_path / "once"), "y": (add, "x", 1)}, "y") == 2
    (log,) = watcher.logs
    (loss,) = log.losses
    assert (loss.key, loss.worker in (0, 1)) == ("x", True)
    assert "signal 9" in loss.cause
    assert [entry.key for entry in log.all_entries()] == ["x", "y"]


def test_without_entries_tasks_are_counted(engine):
    counter = Watcher(wants_entries=False)
    engine.watchers.append(counter)
    try:
        engine.get({("x", i): (abs, -i) for i in range(5)}, [("x", i) for i in range(5)])
    finally:
        engine.watchers.remove(counter)
    (log,) = counter.logs
    assert log.entries is None
    assert not log.dependencies
    assert log.tallies["x"].count == 5


def test_values_moved_to_disk(watcher):
    dsk, expected = joined(40)  # 320 MB
    with limited(150 << 20) as engine:
        assert engine.get(dsk, "total") == expected
        glance = engine.glance()
        assert glance.spilled == sum(move.nbytes for move in watcher.logs[-1].moves) > 0
        assert all(move.seconds > 0 and move.key[0] == "x" for move in watcher.logs[-1].moves)
        assert glance.total == glance.private + glance.arenas
        assert glance.busy == 0
    assert engine.glance() is None


def test_kinds():
    assert kind_of("sum-aggregate-1f3a") == "sum-aggregate"
    assert kind_of(("load",)) == "load"
    assert kind_of(int) == "int"


def test_unwatch_may_be_called_again():
    watcher = Watcher()
    watch.watch(watcher)
    watch.unwatch(watcher)
    watch.unwatch(watcher)
    assert watch.begin_log(object()) is None
