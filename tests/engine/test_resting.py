"""Idle workers give memory back before values go to disk for it."""

import os
import signal

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
