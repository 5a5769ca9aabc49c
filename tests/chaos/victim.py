"""A program that is killed or interrupted from outside: `python -m tests.chaos.victim PHASE SPILL-FOLDER`.

It says `go` when the phase begins that is asked for, and does that again and again. In the phase `interrupts`
it says for each KeyboardInterrupt when it came, and whether what it computed next was right.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np

import graphmill

BIG = 400_000
#: Elements of an array that takes some seconds to sort, in C.
LONG = 30_000_000


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def graph(blocks=24):
    dsk = {("x", i): (np.full, BIG, float(i)) for i in range(blocks)}
    dsk |= {("y", i): (np.add, ("x", i), ("x", (i + 1) % blocks)) for i in range(blocks)}
    dsk["sum"] = (sum, [(np.sum, ("y", i)) for i in range(blocks)])
    return dsk


def right(engine, blocks=24):
    return engine.get(graph(blocks), "sum") == BIG * blocks * (blocks - 1)


def starting(folder):
    import dask.array  # noqa: F401 - so that the template has something to import

    say("go")
    while True:
        with graphmill.Engine(2, spill_folder=folder) as engine:
            engine.get({"x": (abs, -1)}, "x")


def computing(folder):
    with graphmill.Engine(2, spill_folder=folder) as engine:
        engine.get({"x": (abs, -1)}, "x")
        say("go")
        while True:
            right(engine)


def spilling(folder):
    with graphmill.Engine(2, memory_limit="250MB", spill_folder=folder) as engine:
        keys = [("x", i) for i in range(120)]
        dsk = {key: (np.full, BIG, float(key[1])) for key in keys}
        engine.get({"x": (abs, -1)}, "x")
        while True:
            counts = engine.get({**dsk, "n": (_count, keys)}, "n", callbacks=(_when_spilled(engine),))
            assert counts == len(keys)


def _count(arrays):
    return sum(int(array[0] == i) for i, array in enumerate(arrays))


def _when_spilled(engine):
    said = []

    def posttask(*_):
        if not said and engine.memory().on_disk:
            said.append(True)
            say("go")

    return (None, None, None, posttask, None)


def closing(folder):
    while True:
        engine = graphmill.Engine(2, spill_folder=folder)
        right(engine)
        say("go")
        engine.close()


def interrupts(folder):
    engine = graphmill.Engine(2, spill_folder=folder)
    right(engine)
    say("go")
    while True:
        try:
            for work in (_in_python, _in_c, _many):
                work(engine)
        except KeyboardInterrupt:
            raised = time.monotonic()
            say(raised, right(engine))


def _in_python(engine):
    engine.get({("x", i): (_spin, 0.3) for i in range(4)}, [("x", 0), ("x", 3)])


def _spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _in_c(engine):
    engine.get({("x", i): (_sort, i) for i in range(2)}, [("x", 0), ("x", 1)])


def _sort(seed):
    return float(np.sort(np.random.default_rng(seed).random(LONG // 10))[0])


def _many(engine):
    for _ in range(5):
        right(engine)


PHASES = {function.__name__: function for function in (starting, computing, spilling, closing, interrupts)}

if __name__ == "__main__":
    # Whatever a shell starts in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    PHASES[sys.argv[1]](Path(sys.argv[2]))
