"""More or fewer workers while an engine is in use."""

import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest

import graphmill
from graphmill.engine import crew
from graphmill.errors import EngineClosed, PoolError

LIMIT = 60


def pid_of(_=None):
    time.sleep(0.02)
    return os.getpid()


def graph(n):
    return {("pid", i): (pid_of, i) for i in range(n)}


def pids(engine, n=40):
    return set(engine.get(graph(n), list(graph(n))))


def alive(engine):
    workers = map(engine.pool.pid, range(engine.pool.num_workers))
    return {pid for pid in workers if pid and psutil.pid_exists(pid)}


def until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def engine():
    with graphmill.Engine(2, warm_limit=0) as made:
        yield made


def test_fewer_and_more(engine):
    assert len(pids(engine)) == 2
    engine.scale(1)
    (left,) = pids(engine)
    until(lambda: pids(engine, 1) and alive(engine) == {left})
    engine.scale(4)
    more = pids(engine, 80)
    assert len(more) == 4
    assert left in more
    assert engine.num_workers == 4
    engine.scale(2)
    assert len(pids(engine)) == 2


def test_before_anything_ran():
    with graphmill.Engine(1) as engine:
        engine.scale(3)
        assert len(pids(engine, 60)) == 3


def test_results_survive_their_worker(engine):
    with graphmill.Executor(engine=engine) as executor:
        futures = [executor.submit(np.full, 100_000, n) for n in range(6)]
        arrays = [future.result() for future in futures[:3]]
        engine.scale(1)
        (left,) = pids(engine)
        until(lambda: pids(engine, 1) and alive(engine) == {left})
        assert [int(array[-1]) for array in arrays] == [0, 1, 2]
        assert [int(executor.submit(np.max, future).result()) for future in futures] == list(range(6))


def test_a_run_that_goes_on_follows(engine):
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.get(graph(150), list(graph(150)))))
    thread.start()
    until(lambda: engine._running)
    engine.scale(4)
    thread.join(LIMIT)
    assert len(set(found)) == 4


def test_a_run_that_goes_on_ends_with_fewer(engine):
    found = []
    thread = threading.Thread(target=lambda: found.extend(engine.get(graph(100), list(graph(100)))))
    thread.start()
    until(lambda: engine._running)
    engine.scale(1)
    thread.join(LIMIT)
    assert len(found) == 100
    assert len(set(found[-20:])) == 1


def test_calls_follow(engine):
    with graphmill.Executor(engine=engine) as executor:
        engine.scale(4)
        assert len(set(executor.map(pid_of, range(60)))) == 4
        engine.scale(1)
        assert len(set(executor.map(pid_of, range(20)))) == 1


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (1.5, TypeError), (10_000, PoolError)])
def test_strange_numbers(engine, number, error):
    with pytest.raises(error):
        engine.scale(number)
    assert len(pids(engine)) == 2


def test_after_the_end(engine):
    engine.close()
    with pytest.raises(EngineClosed):
        engine.scale(3)


def test_workers_share_memory_in_groups(monkeypatch):
    monkeypatch.setattr(crew, "GROUP", 2)
    big = 400_000
    dsk = {("x", i): (np.full, big, i) for i in range(40)}
    dsk |= {("y", i): (np.add, ("x", i), ("x", (i + 1) % 40)) for i in range(40)}
    with graphmill.Engine(5, warm_limit=0) as engine:
        for victim in (None, 0, 3):
            if victim is not None:
                os.kill(engine.pool.pid(victim), signal.SIGKILL)
            found = engine.get(dsk, [("y", i) for i in range(40)])
            assert [array[-1] for array in found] == [i + (i + 1) % 40 for i in range(40)]
            assert len(engine.crew._commons) == 3
            del found
        until(lambda: engine.blocks.live == 0)
        engine.rest()
        assert engine.memory().arenas == 0
