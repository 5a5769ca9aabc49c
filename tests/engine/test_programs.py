"""The engine in programs of every kind, and what is left when they end, in whatever way."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from graphmill import Engine
from graphmill.engine import core
from graphmill.workers.pool import Pool
from tests.engine.conftest import LIMIT, SOURCE, left_of, leftovers

PROGRAM = """
import graphmill

def double(x):
    return 2 * x

print(graphmill.get({"x": 1, "y": (double, "x"), "z": (lambda y: y + 1, "y")}, "z"))
"""


class TestKinds:
    def test_a_script_without_a_guard(self, script, tmp_path):
        assert script(PROGRAM, folder=tmp_path) == "3\n"

    def test_from_stdin(self, script):
        assert script(PROGRAM, stdin=True) == "3\n"

    def test_a_command(self, script):
        assert script(PROGRAM) == "3\n"

    def test_an_exception_at_the_end(self, script):
        script(PROGRAM + "\nraise SystemExit(3)", returncode=3)

    def test_an_engine_that_was_never_closed(self, script):
        assert script("from graphmill import Engine\nprint(Engine(1).get({'x': (abs, -1)}, 'x'))") == "1\n"

    def test_a_result_at_exit(self, script):
        source = (
            "import graphmill, numpy as np\nx = graphmill.get({'x': (np.ones, 200_000)}, 'x')\nprint(x.sum())"
        )
        assert script(source) == "200000.0\n"

    def test_importing_starts_nothing(self, script):
        source = (
            "import sys, threading, graphmill\n"
            "print(threading.active_count(), 'numpy' in sys.modules, 'dask' in sys.modules)"
        )
        assert script(source) == "1 False False\n"

    def test_a_fork_of_the_program(self, script):
        source = (
            "import os, warnings, graphmill\nwarnings.simplefilter('ignore')\n"
            "print(graphmill.get({'x': (abs, -1)}, 'x'), flush=True)\n"
            "if os.fork() == 0:\n"
            "    print(graphmill.get({'x': (abs, -2)}, 'x'), flush=True)\n"
            "    raise SystemExit\n"
            "os.wait()\n"
            "print(graphmill.get({'x': (abs, -3)}, 'x'))"
        )
        assert script(source) == "1\n2\n3\n"

    @pytest.mark.parametrize(
        "load",
        [
            "import runpy; runpy.run_path({path!r})",
            "import runpy; runpy.run_path({path!r}, run_name='plugin')",
            "import sys, types; module = sys.modules['plugin'] = types.ModuleType('plugin'); "
            "exec(open({path!r}).read(), module.__dict__)",
            "import sys, importlib.util as util; spec = util.spec_from_file_location('plugin', {path!r}); "
            "module = sys.modules['plugin'] = util.module_from_spec(spec); spec.loader.exec_module(module)",
        ],
    )
    def test_a_module_that_only_the_program_has(self, script, tmp_path, load):
        source = """
import os, graphmill

class Point:
    def __init__(self, x):
        self.x = x

def double(x):
    return make(2 * x)

def make(x):
    return Point(x), os.getpid()

found, pid = graphmill.get({"x": 1, "y": (double, "x")}, "y")
print(type(found) is Point, found.x, pid != os.getpid())
"""
        path = tmp_path / "plugin.py"
        path.write_text(source)
        assert script(load.format(path=str(path))) == "True 2 True\n"


BUSY = """
import sys, time
import numpy as np
import graphmill

def sleep(x, i):
    if i == 4:
        print("going", flush=True)
    while i >= 4:
        time.sleep(0.01)
    return x

dsk = {("x", i): (sleep, (np.ones, 200_000), i) for i in range(8)}

try:
    graphmill.get(dsk, list(dsk))
except KeyboardInterrupt:
    print(graphmill.get({"x": (abs, -1)}, "x"), flush=True)
"""


@pytest.fixture
def program():
    """Start a program, and wait until it says that it is under way."""
    started = []

    def start(source):
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCE},
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == "going\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=LIMIT)


def test_ctrl_c_stops_tasks_and_the_engine_goes_on(program):
    process = program(BUSY)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("1\n", "", 0)
    assert left_of(process.pid) == []


PLAIN = """
import os, signal
import graphmill

def work(x):
    print("going", flush=True)
    for _ in range(1_000_000):
        sum(range(10_000))

graphmill.get({"x": (work, 1)}, "x")
"""

#: Ctrl-C once more while workers are ended.
TWICE = """
from graphmill.workers.template_handle import TemplateHandle

end = TemplateHandle.end

def interrupted(*args):
    os.kill(os.getpid(), signal.SIGINT)
    end(*args)

TemplateHandle.end = interrupted
"""


@pytest.mark.parametrize("more", ["", TWICE])
def test_ctrl_c_in_a_plain_program_shows_one_traceback(program, more):
    process = program(PLAIN.replace("\ngraphmill.get", f"{more}\ngraphmill.get"))
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    out, err = process.communicate(timeout=20)
    assert (out, process.returncode) == ("", -signal.SIGINT)
    assert err.count("Traceback") == 1, err
    assert err.endswith("\nKeyboardInterrupt\n")
    assert not any(child.is_running() for child in family)
    assert left_of(process.pid) == []


def test_an_engine_is_closed_though_ctrl_c_comes_meanwhile(monkeypatch):
    close = Pool.close

    def interrupted(pool, *args):
        close(pool, *args)
        signal.raise_signal(signal.SIGINT)

    engine = Engine(1)
    assert engine.get({"x": (abs, -1)}, "x") == 1
    monkeypatch.setattr(Pool, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert leftovers() == []


def test_ctrl_c_interrupts_tasks_and_their_workers_live_on(monkeypatch, tmp_path):
    """All workers are busy with tasks that would never end."""
    monkeypatch.setattr(core, "STOP_LIMIT", float(LIMIT))  # so that none is ended, however busy the machine

    def forever(i):
        (tmp_path / str(os.getpid())).touch()
        while True:
            time.sleep(0.01)

    def interrupt():
        deadline = time.monotonic() + LIMIT
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    dsk = {("x", i): (forever, i) for i in range(6)}
    with Engine(2) as engine:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.get(dsk, list(dsk))
        thread.join(LIMIT)
        dsk = {("x", i): (abs, -i) for i in range(20)}
        assert engine.get(dsk, list(dsk)) == tuple(range(20))
        pids = {str(engine.pool.pid(number)) for number in range(2)}
        assert {path.name for path in tmp_path.iterdir()} == pids


DEAF = """
import os, signal, time
import graphmill
from graphmill.engine import core

core.STOP_LIMIT = 1000.0
PARENT = os.getpid()

def work(x):
    print("going", flush=True)
    while True:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            os.kill(PARENT, signal.SIGINT)

engine = graphmill.Engine(1)
try:
    engine.get({"x": (work, 1)}, "x")
except KeyboardInterrupt:
    print(engine.get({"x": (abs, -1)}, "x"), flush=True)
"""


def test_a_second_ctrl_c_ends_tasks_that_do_not_stop(program):
    process = program(DEAF)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT) == ("1\n", "")
    assert left_of(process.pid) == []


AT_ONCE = """
import os, signal, time
import graphmill
from graphmill.engine import core
from graphmill.engine.crew import Crew

core.STOP_LIMIT = 1000.0

def cancel(self, client, real=Crew.cancel):
    real(self, client)
    os.kill(os.getpid(), signal.SIGINT)

Crew.cancel = cancel

def work(x):
    print("going", flush=True)
    while True:
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            pass

engine = graphmill.Engine(1)
try:
    engine.get({"x": (work, 1)}, "x")
except KeyboardInterrupt:
    print(engine.get({"x": (abs, -1)}, "x"), flush=True)
"""


def test_a_second_ctrl_c_that_comes_before_the_wait_ends_them_too(program):
    process = program(AT_ONCE)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT) == ("1\n", "")
    assert left_of(process.pid) == []


AT_THE_START = """
import os, signal
import graphmill
from graphmill.memory import arena

def lock(descriptor, real=arena.lock):
    arena.lock = real
    os.kill(os.getpid(), signal.SIGINT)
    real(descriptor)

arena.lock = lock  # called when a segment is there, and nobody knows it yet
try:
    graphmill.get({"x": (abs, -1)}, "x")
except KeyboardInterrupt:
    print("interrupted")
print(graphmill.get({"x": (abs, -1)}, "x"))
"""


def test_ctrl_c_while_the_engine_starts_leaves_nothing(script):
    assert script(AT_THE_START) == "interrupted\n1\n"


STUBBORN = """
import graphmill, numpy as np

print("going", flush=True)
interrupts = 0
while interrupts < 12:
    try:
        dsk = {("x", i): (np.full, 20_000, i) for i in range(50)}
        graphmill.get({**dsk, "sum": (sum, [(np.sum, key) for key in dsk])}, "sum")
    except KeyboardInterrupt:
        interrupts += 1
while True:
    try:
        print(graphmill.get({"x": (abs, -1)}, "x"), flush=True)
        break
    except KeyboardInterrupt:
        pass
"""


def test_ctrl_c_again_and_again(program):
    process = program(STUBBORN)
    deadline = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=0.04)
        except subprocess.TimeoutExpired:
            continue
    assert process.poll() is not None, "it hangs"
    assert left_of(process.pid) == []


AT_THE_END = """
import atexit, os, graphmill
from pathlib import Path

folder = Path(FOLDER)
atexit.register(lambda: (folder / f"program-{os.getpid()}").touch())

def begin(number):
    atexit.register(lambda: (folder / f"task-{os.getpid()}").touch())
    return os.getpid()

with graphmill.Engine(2) as engine:
    tasks = {("begin", i): (begin, i) for i in range(8)}
    pids = engine.get(tasks, list(tasks))
    assert not list(folder.iterdir())
print(os.getpid(), *sorted(set(pids)))
"""


def test_what_tasks_register_for_the_end_of_their_process_is_done(script, tmp_path):
    program, *workers = script(AT_THE_END.replace("FOLDER", repr(str(tmp_path)))).split()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"program-{program}",
        *[f"task-{worker}" for worker in workers],
    }


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_killed_program_leaves_nothing_and_says_nothing(program, send, end):
    """The template does what the program cannot; it is out of reach of what hits the program's group."""
    process = program(BUSY)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3
    assert left_of(process.pid)
    send(process.pid, end)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert left_of(process.pid) == []
    assert process.communicate(timeout=LIMIT) == ("", "")
    assert process.returncode == -end
