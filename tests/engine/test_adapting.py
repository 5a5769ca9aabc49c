"""Workers for whose tasks there is no memory end, and come back."""

import ast

import pytest

from graphmill import Engine, Executor
from graphmill.engine.adapting import CAUTION, PATIENCE, Adapting


def looks(made, times, workers, idle, *, plenty):
    """What it says at each of these times."""
    return [made.look(now, workers, idle, waiting=True, plenty=plenty) for now in times]


class TestDecisions:
    def test_workers_that_memory_keeps_idle_end_after_a_while(self):
        made = Adapting(8)
        assert looks(made, [0, 1, 1.9], 8, 3, plenty=False) == [8, 8, 8]
        assert made.look(PATIENCE, 8, 5, waiting=True, plenty=False) == 5  # three were idle all the time

    def test_time_in_which_all_had_something_to_do_counts_anew(self):
        made = Adapting(8)
        looks(made, [0, 1.5], 8, 3, plenty=False)
        assert made.look(1.6, 8, 0, waiting=True, plenty=False) == 8
        assert looks(made, [1.7, 3.5], 8, 3, plenty=False) == [8, 8]
        assert made.look(3.8, 8, 3, waiting=True, plenty=False) == 5

    def test_workers_that_something_else_keeps_idle_stay(self):
        made = Adapting(8)
        assert looks(made, range(20), 8, 3, plenty=True) == [8] * 20

    def test_time_in_which_no_task_waited_counts_anew(self):
        made = Adapting(8)
        assert made.look(0, 8, 3, waiting=True, plenty=False) == 8
        assert made.look(1, 8, 8, waiting=False, plenty=False) == 8
        assert made.is_calm
        assert looks(made, [50, 51], 8, 3, plenty=False) == [8, 8]
        made.forget()
        assert looks(made, [100, 101], 8, 3, plenty=False) == [8, 8]

    def test_one_stays(self):
        made = Adapting(2)
        made.look(0, 2, 2, waiting=True, plenty=False)
        assert made.look(PATIENCE, 2, 2, waiting=True, plenty=False) == 1
        assert looks(made, [3, 6, 9], 1, 1, plenty=False) == [1, 1, 1]

    def test_they_come_back_when_there_is_plenty_for_them(self):
        made = Adapting(8)
        assert looks(made, [0, CAUTION / 2], 3, 0, plenty=True) == [3, 3]
        assert made.look(CAUTION, 3, 0, waiting=True, plenty=True) == 6
        assert looks(made, [2, 2 + CAUTION], 6, 0, plenty=True) == [6, 8]
        assert looks(made, range(5, 20), 8, 0, plenty=True) == [8] * 15

    def test_what_was_in_vain_is_not_soon_tried_again(self):
        made, now = Adapting(2), 0.0
        waits = []
        for _ in range(4):
            made.look(now, 2, 1, waiting=True, plenty=False)
            now += PATIENCE
            assert made.look(now, 2, 1, waiting=True, plenty=False) == 1
            began = now
            while made.look(now, 1, 0, waiting=True, plenty=True) == 1:
                now += CAUTION / 8
            waits.append(now - began)
        assert waits[0] == CAUTION
        assert waits[1] == 4 * CAUTION
        assert waits[3] > 30 * CAUTION


#: In a process of its own: how much memory others have, and it itself, would be decisive here.
GRAPH = """
import os, time
import numpy as np
from graphmill import Engine
from graphmill.engine import adapting, choices, core

adapting.PATIENCE, adapting.CAUTION = 0.2, 0.1
choices.available_cpus = lambda: 4

def large():
    time.sleep(0.05)
    return np.ones(7_000_000)

def total(array):
    return float(array.sum())

def pid_after():
    time.sleep(0.02)
    return os.getpid()

with Engine(4) as engine:
    engine.get({("x", i): (pid_after,) for i in range(40)}, [("x", 0)])
    limit = engine.memory().private + (80 << 20)  # room for one, and not for two
dsk = {("large", i): (large,) for i in range(40)} | {("end", i): (total, ("large", i)) for i in range(40)}
numbers = []
have = core.Engine._have_workers

def noted(self, number):
    numbers.append(number)
    have(self, number)

core.Engine._have_workers = noted
with Engine(WORKERS, memory_limit=limit) as engine:
    assert engine.num_workers == 4
    assert set(engine.get(dsk, [("end", i) for i in range(40)])) == {7e6}
    after = {("p", i): (pid_after,) for i in range(60)}
    print(numbers, engine.num_workers, len(set(engine.get(after, list(after)))))
"""


def test_a_graph_that_memory_slows_down_ends_with_fewer_workers(script, monkeypatch):
    monkeypatch.setenv("GRAPHMILL_MEMORY_PER_WORKER", "10MB")
    said = script(GRAPH.replace("WORKERS", "'auto'"))
    numbers, *after = said.rsplit(maxsplit=2)
    assert 1 <= min(ast.literal_eval(numbers)) < 4
    assert after == ["4", "4"], "the next graph may be another"


def test_a_number_that_somebody_has_said_stays(script):
    assert script(GRAPH.replace("WORKERS", "4")).strip() == "[] 4 4"


def test_who_says_a_number_later_has_it_stay():
    with Engine("auto") as engine:
        assert engine._adapting is not None
        engine.scale(1)
        assert engine._adapting is None
    with Executor("auto") as executor:
        assert executor.submit(abs, -1).result() == 1


def test_auto_as_a_number_of_workers_is_one_word():
    with pytest.raises(TypeError, match="num_workers must be a whole number"):
        Engine("automatic")
