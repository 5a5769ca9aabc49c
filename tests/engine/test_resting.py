"""Idle workers give memory back before values go to disk for it."""

import os
import signal
import time

import numpy as np

from graphmill import Engine
from graphmill.engine import core

MB = 1 << 20


def heavy(nbytes):
    """Take memory, and give it back: its pages are kept for the next task."""
    return float(np.ones(nbytes // 8).sum())


def many(nbytes):
    """Do so in pieces that go into the worker's own arena."""
    return float(sum(part.sum() for part in [np.ones(64_000) for _ in range(nbytes // 512_000)]))


def test_workers_rest_when_they_are_told_to():
    with Engine(2) as engine:
        engine.get(dict.fromkeys(range(4), (heavy, 40 * MB)), list(range(4)))
        assert engine.memory().warm >= 40 * MB
        engine.rest()
        assert engine.memory().warm == 0
        with engine.access():
            assert engine.crew.rest() == []  # they have nothing more to give


def test_who_is_at_work_is_left_alone():
    with Engine(2) as engine:
        engine.get({"x": (many, 40 * MB)}, "x")
        for seat in engine.crew._seats:
            seat.flights[-1] = None
        engine.rest()
        for seat in engine.crew._seats:
            del seat.flights[-1]
        assert engine.memory().warm >= 39 * MB


def test_a_worker_that_dies_meanwhile_keeps_nobody_waiting():
    with Engine(1) as engine:
        engine.get({"x": (heavy, 40 * MB)}, "x")
        engine.crew.kill(0)
        engine.rest()
        assert not any(seat.resting for seat in engine.crew._seats)
        assert engine.get({"x": (heavy, 40 * MB)}, "x") == 5 * MB


def test_a_worker_that_stands_still_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(core, "REST_LIMIT", 0.2)
    with Engine(1) as engine:
        engine.get({"x": (heavy, 40 * MB)}, "x")
        pid = engine.pool.pid(0)
        os.kill(pid, signal.SIGSTOP)
        try:
            engine.rest()
            [seat] = engine.crew._seats
            assert seat.resting
            with engine.access():
                assert engine.crew.rest() == []
        finally:
            os.kill(pid, signal.SIGCONT)
        assert engine.get({"x": (heavy, 40 * MB)}, "x") == 5 * MB
        assert not seat.resting


SCRIPT = """
import numpy as np, os
from graphmill import Engine
from graphmill.footprint import PrivateMemory

MB = 1 << 20

def made(_):
    return np.ones(48 * MB // 8)

def heavy(*_):
    return float(np.ones(96 * MB // 8).sum())

def more(_):
    a = np.ones(30 * MB // 8)
    b = np.ones(30 * MB // 8)
    c = np.ones(60 * MB // 8)
    return float(a.sum() + b.sum() + c.sum())

def total(x, *_):
    return float(x.sum())

with Engine(1) as probe:
    probe.get({"x": (abs, -1)}, "x")
    least = probe.memory().private
with Engine(1, memory_limit=least + 190 * MB) as engine:
    engine.get({"warm": (heavy,)}, "warm")
    engine.get({"a": (more, 0)}, "a")
    graph = {
        "x": (made, 0),
        "first": (heavy, "x"),
        "second": (more, "first"),
        "third": (heavy, "second"),
        "y": (total, "x", "third"),
    }
    right = engine.get(graph, "y") == 6 * MB
    print(right, engine.memory().spilled, engine.memory().peak <= 1.02 * engine.memory_limit)
"""


def test_nothing_goes_to_disk_for_what_idle_workers_keep(script):
    assert script(SCRIPT).strip() == "True 0 True"


def occupied(engine):
    return engine.memory().arenas


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_the_user_lets_go_of_later_goes_back_though_nothing_runs():
    with Engine(2, warm_limit="16MB") as engine:
        engine.get({"x": (sum, [1, 2])}, "x")
        stored = [engine.store(np.full(5 * MB, 1.0)) for _ in range(4)]
        assert engine.blocks.occupied() >= 160 * MB
        del stored
        until(lambda: engine.blocks.occupied() <= 16 * MB)  # looks, and does nothing else


def test_a_closed_engine_keeps_what_is_looked_at_and_no_more():
    engine = Engine(2)
    keys = list("abcd")
    results = engine.get({key: (np.full, 5 * MB, ord(key)) for key in keys}, keys)
    files = [os.dup(arena.descriptor) for arena in engine.crew.arenas.values()]

    def left():
        return sum(os.fstat(file).st_blocks * 512 for file in files)

    try:
        kept = results[2]
        del results
        engine.close()
        assert 40 * MB <= left() <= 41 * MB
        assert (kept == ord("c")).all()
    finally:
        for file in files:
            os.close(file)


def too_much():
    return [np.frombuffer(bytes(20 * MB), np.uint8) for _ in range(30)]


def test_a_result_that_is_too_large_leaves_nothing_behind(script):
    script(
        "import graphmill\n"
        "from tests.engine.test_resting import too_much\n"
        "with graphmill.Engine(1, memory_limit='500MB') as engine:\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            engine.get({'x': (too_much,)}, 'x')\n"
        "        except graphmill.errors.MemoryLimitError:\n"
        "            pass\n"
        "        else:\n"
        "            raise SystemExit('it has fit')\n"
        "        engine.rest()\n"
        "        assert engine.memory().arenas < 20 << 20, engine.memory()\n"
    )
