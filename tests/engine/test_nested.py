"""Engines inside engines, in threads, in forked processes, and at the end of the program."""

import os
import subprocess
import sys
import threading

import psutil
import pytest

import graphmill
from graphmill import Engine
from tests.engine.conftest import LIMIT, SOURCE, left_of


def test_an_engine_inside_a_task(engine):
    def inner():
        with Engine(2) as nested:
            return nested.get({"x": (abs, -3), "pid": (os.getpid,)}, ["x", "pid"])

    found, pid = engine.get({"y": (inner,)}, "y")
    assert found == 3
    assert pid != os.getpid()


def test_get_inside_a_task_runs_in_that_process(engine):
    def inner():
        return graphmill.get({"pid": (os.getpid,)}, "pid") == os.getpid()

    assert engine.get({"y": (inner,)}, "y")


def test_threads_share_the_default_engine(script):
    source = """
import threading, time, graphmill
from graphmill import engine

found, made = {}, []

def make(*args, real=engine.Engine):
    made.append(args)
    time.sleep(0.2)  # for the others to ask for one, too
    return real(*args)

engine.Engine = make

def compute(i):
    found[i] = graphmill.get({"x": (abs, -i), "y": (abs, "x")}, "y")

threads = [threading.Thread(target=compute, args=(i,)) for i in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(found == {i: i for i in range(8)}, len(made))
"""
    assert script(source) == "True 1\n"


FORK = """
import gc, os, threading, warnings
import numpy as np
import graphmill
from graphmill.errors import EngineClosed

warnings.simplefilter("ignore")

def in_a_child(function):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_forked_process_that_drops_a_result_leaves_it_to_its_parent(script):
    """Its copy of the engine gave the memory back, and the parent read zeros."""
    source = """
with graphmill.Engine(2, warm_limit=0) as engine:
    x = engine.get({"x": (np.full, 200_000, 7.0)}, "x")

    def drop():
        global x
        del x
        gc.collect()

    in_a_child(drop)
    print((x == 7).all(), engine.get({"x": (np.full, 200_000, 8.0)}, "x")[0], (x == 7).all())
"""
    assert script(FORK + source) == "True 8.0 True\n"


def test_an_engine_in_a_forked_process_says_whose_it_is(script):
    """Also where another thread had the engine locked when the process was forked."""
    source = """
engine = graphmill.Engine(1)
engine.get({"x": (abs, -1)}, "x")

def use():
    for way in (lambda: engine.get({"x": (abs, -1)}, "x"), engine.memory):
        try:
            way()
        except EngineClosed as error:
            assert "forked" in str(error)
        else:
            raise AssertionError
    engine.close()

locked, done = threading.Event(), threading.Event()

def hold():
    with engine.access():
        locked.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
locked.wait()
in_a_child(use)
done.set()
thread.join()
print(engine.get({"x": (abs, -2)}, "x"))
engine.close()
"""
    assert script(FORK + source) == "2\n"


def test_get_in_a_forked_process_has_an_engine_of_its_own(script):
    """Also where another thread was just making the default engine."""
    source = """
from graphmill import engine

print(graphmill.get({"x": (abs, -1)}, "x"), flush=True)
default = engine._defaults[os.getpid()]

def compute():
    print(graphmill.get({"x": (abs, -2)}, "x"), flush=True)
    engine._defaults[os.getpid()].engine.close()

with default.lock:
    in_a_child(compute)
print(graphmill.get({"x": (abs, -3)}, "x"))
"""
    assert script(FORK + source) == "1\n2\n3\n"


class TestTheEndOfTheProgram:
    def test_a_handler_at_exit_that_computes(self, script):
        source = """
import atexit, graphmill

atexit.register(lambda: print(graphmill.get({"x": (abs, -2)}, "x"), flush=True))
print(graphmill.get({"x": (abs, -1)}, "x"), flush=True)
"""
        assert script(source, patience=2.0) == "1\n2\n"

    def test_threads_that_compute_for_ever(self, script):
        """The pool was closed under an engine that others still used, and they met its broken channels."""
        source = """
import threading, graphmill
from graphmill.errors import EngineClosed

begun = threading.Barrier(3)

def compute():
    begun.wait()
    while True:
        try:
            graphmill.get({("x", i): (abs, -i) for i in range(20)}, [("x", 3)])
        except EngineClosed:
            pass

for _ in range(2):
    threading.Thread(target=compute, daemon=True).start()
begun.wait()
print(graphmill.get({"x": (abs, -1)}, "x"))
"""
        for _ in range(3):
            assert script(source, patience=2.0) == "1\n"

    def test_threads_that_are_waited_for(self, script):
        source = """
import threading, time, graphmill

def compute():
    main = threading.main_thread()
    main.join()
    print(graphmill.get({"x": (abs, -1)}, "x"))

threading.Thread(target=compute).start()
"""
        assert script(source) == "1\n"


def test_several_engines_at_once():
    with Engine(1) as one, Engine(1) as other:
        found = {}

        def compute(name, engine):
            found[name] = engine.get({"x": (os.getpid,)}, "x")

        threads = [threading.Thread(target=compute, args=pair) for pair in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len({os.getpid(), *found.values()}) == 3


XDIST = """
import os
from pathlib import Path

import pytest
import graphmill

@pytest.mark.parametrize("i", range(4))
def test_both_engines(i):
    (Path(__file__).parent / f"pid-{os.getpid()}").touch()
    dsk = {("x", j): (lambda j: j + 1, j) for j in range(20)}
    expected = tuple(range(1, 21))
    assert graphmill.get(dsk, list(dsk)) == expected
    with graphmill.Engine(1) as engine:
        assert engine.get(dsk, list(dsk)) == expected
"""


def test_tests_that_pytest_xdist_spreads_over_processes(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_both.py").write_text(XDIST)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    pids = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [left_of(pid) for pid in pids] == [[], []]
