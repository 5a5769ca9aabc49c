"""Workers for whose tasks there is no memory end, and come back."""

import os
import time

import numpy as np
import pytest

from graphmill import Engine, Executor
from graphmill.engine import adapting, core
from graphmill.engine.adapting import CAUTION, PATIENCE, Adapting


def looks(made, times, workers, idle, *, plenty):
    """What it says at each of these times."""
    return [made.look(now, workers, idle, plenty=plenty) for now in times]


class TestDecisions:
    def test_workers_that_memory_keeps_idle_end_after_a_while(self):
        made = Adapting(8)
        assert looks(made, [0, 1, 1.9], 8, 3, plenty=False) == [8, 8, 8]
        assert made.look(PATIENCE, 8, 5, plenty=False) == 5  # three were idle all the time

    def test_time_in_which_all_had_something_to_do_counts_anew(self):
        made = Adapting(8)
        looks(made, [0, 1.5], 8, 3, plenty=False)
        assert made.look(1.6, 8, 0, plenty=False) == 8
        assert looks(made, [1.7, 3.5], 8, 3, plenty=False) == [8, 8]
        assert made.look(3.8, 8, 3, plenty=False) == 5

    def test_workers_that_something_else_keeps_idle_stay(self):
        made = Adapting(8)
        assert looks(made, range(20), 8, 3, plenty=True) == [8] * 20

    def test_one_stays(self):
        made = Adapting(2)
        made.look(0, 2, 2, plenty=False)
        assert made.look(PATIENCE, 2, 2, plenty=False) == 1
        assert looks(made, [3, 6, 9], 1, 1, plenty=False) == [1, 1, 1]

    def test_they_come_back_when_there_is_plenty_for_them(self):
        made = Adapting(8)
        assert looks(made, [0, CAUTION / 2], 3, 0, plenty=True) == [3, 3]
        assert made.look(CAUTION, 3, 0, plenty=True) == 6
        assert looks(made, [2, 2 + CAUTION], 6, 0, plenty=True) == [6, 8]
        assert looks(made, range(5, 20), 8, 0, plenty=True) == [8] * 15

    def test_what_was_in_vain_is_not_soon_tried_again(self):
        made, now = Adapting(2), 0.0
        waits = []
        for _ in range(4):
            made.look(now, 2, 1, plenty=False)
            now += PATIENCE
            assert made.look(now, 2, 1, plenty=False) == 1
            began = now
            while made.look(now, 1, 0, plenty=True) == 1:
                now += CAUTION / 8
            waits.append(now - began)
        assert waits[0] == CAUTION
        assert waits[1] == 4 * CAUTION
        assert waits[3] > 30 * CAUTION


def alive():
    """Give what takes most of the memory, for some time, and the process that gave it."""
    time.sleep(0.05)
    return np.ones(7_000_000), os.getpid()


def pid_and_sum(given):
    return given[1], float(given[0][:10].sum())


@pytest.fixture
def impatient(monkeypatch):
    """Everything is decided ten times as soon."""
    monkeypatch.setattr(adapting, "PATIENCE", PATIENCE / 10)
    monkeypatch.setattr(adapting, "CAUTION", CAUTION / 10)


def limit_for(room):
    """A memory limit that leaves so much for tasks."""
    with Engine(2) as engine:
        engine.get({("x", i): (abs, i) for i in range(20)}, [("x", 0)])
        return engine.memory().private + room


def test_a_graph_that_memory_slows_down_ends_with_fewer_workers(impatient, monkeypatch):
    monkeypatch.setattr("graphmill.engine.choices.available_cpus", lambda: 4)
    monkeypatch.setenv("GRAPHMILL_MEMORY_PER_WORKER", "10MB")
    numbers = []
    have = core.Engine._have_workers

    def noted(self, number):
        numbers.append(number)
        have(self, number)

    monkeypatch.setattr(core.Engine, "_have_workers", noted)
    dsk = {("big", i): (alive,) for i in range(30)}
    dsk |= {("end", i): (pid_and_sum, ("big", i)) for i in range(30)}
    with Engine("auto", memory_limit=limit_for(100 << 20)) as engine:
        assert engine.num_workers == 4
        found = engine.get(dsk, [("end", i) for i in range(30)])
        assert {total for _, total in found} == {10.0}
        assert numbers, "only one task has room"
        assert 1 <= min(numbers) < 4
        assert engine.num_workers == 4, "the next graph may be another"
        assert (
            len(set(engine.get({("p", i): (pid_after,) for i in range(40)}, [("p", i) for i in range(40)])))
            == 4
        )


def pid_after():
    time.sleep(0.02)
    return os.getpid()


def test_a_number_that_somebody_has_said_stays(impatient):
    with Engine(3, memory_limit=limit_for(100 << 20)) as engine:
        engine.get({("big", i): (alive,) for i in range(20)} | {"n": (len, [("big", 19)])}, "n")
        assert engine._adapting is None
        assert engine.num_workers == 3
    with Engine("auto") as engine:
        engine.scale(1)
        assert engine._adapting is None
    with Executor("auto") as executor:
        assert executor.submit(abs, -1).result() == 1


def test_auto_as_a_number_of_workers_is_one_word():
    with pytest.raises(TypeError, match="num_workers must be a whole number"):
        Engine("automatic")
