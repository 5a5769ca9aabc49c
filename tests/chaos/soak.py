"""Many computations on one engine, some failing on purpose: nothing may grow. Run by `scripts/soak`."""

import argparse
import gc
import logging
import os
import random
import signal
import statistics
import sys
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import psutil

from graphmill import Engine
from graphmill.errors import GraphmillError, WorkerDied
from graphmill.graph import flatten
from tests.chaos.tormentor import workers_of
from tests.chaos.workloads import draw

#: Computations between two looks.
EVERY = 10
#: What of the parent's memory may grow, as a part of it: the allocators of C and Python settle slowly.
SLACK = 0.02


@dataclass
class Look:
    """What an engine has at some moment, while it does nothing."""

    descriptors: int
    threads: int
    processes: int
    #: Arenas that are there, and bytes of blocks that are needed.
    arenas: int
    live: int
    #: Private memory of this process, in bytes.
    memory: int


def look(engine):
    gc.collect()
    process = psutil.Process()
    return Look(
        process.num_fds(),
        threading.active_count(),
        len(process.children(recursive=True)),
        len(engine.crew.arenas),
        engine.blocks.live,
        process.memory_full_info().uss,
    )


def _raise(x):
    raise ValueError(x)


def _die(x):
    os.kill(os.getpid(), signal.SIGKILL)


def _lock(x):
    return threading.Lock()


def fails(engine, chance):
    """Compute something that fails in one way or another."""
    dsk = {("x", i): (np.full, 100_000, i) for i in range(10)}
    way = chance.randrange(4)
    if way == 3:
        alive = workers_of(engine)  # none, where each has just died and is being replaced
        if alive:
            os.kill(chance.choice(alive), signal.SIGKILL)  # nobody need fail of that
        engine.get(dsk, list(dsk))
        return
    wrong, expected = [(_raise, ValueError), (_die, WorkerDied), (_lock, GraphmillError)][way]
    try:
        engine.get({**dsk, "wrong": (wrong, [*dsk])}, [*dsk, "wrong"])
    except expected:
        return
    raise AssertionError(f"{expected} was not raised")


def soak(computes, minutes, chance, say):
    """Compute, and look now and then; return what grew."""
    looks, done = [], 0
    # Made once: what Dask keeps of each graph that it makes is not what is looked for.
    graphs = []
    for _ in range(20):
        work = draw(chance)[1]
        graphs.append((dict(work.__dask_graph__()), list(flatten(work.__dask_keys__()))))
    end = time.monotonic() + 60 * minutes
    with Engine(2) as engine:
        while done < computes and time.monotonic() < end:
            if chance.random() < 0.1:
                fails(engine, chance)
            else:
                engine.get(*chance.choice(graphs))
            done += 1
            if done % EVERY == 0:
                engine.get({("x", i): (abs, i) for i in range(8)}, [("x", 1)])  # whoever has died is replaced
                looks.append(look(engine))
            if done % 100 == 0:
                say(f"{done}: {looks[-1]}")
    return done, grown(looks)


def grown(looks):
    """Compare the last fifth of what was seen with what there was after the first twentieth."""
    start, part = max(1, len(looks) // 20), max(1, len(looks) // 5)
    first, last = looks[start : start + part], looks[-part:]
    found = []
    for each in fields(Look):
        before = statistics.median(getattr(one, each.name) for one in first)
        after = statistics.median(getattr(one, each.name) for one in last)
        slack = SLACK * before if each.name == "memory" else 0
        if after > before + slack:
            found.append(f"{each.name} grew from {before:,.0f} to {after:,.0f}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--computes", type=int, default=2_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    logging.getLogger("graphmill").setLevel(logging.ERROR)  # each death is told there

    def say(text):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    say(f"seed {options.seed}, process {os.getpid()}")
    begin = time.monotonic()
    done, found = soak(options.computes, options.minutes, random.Random(options.seed), say)
    say(f"{done} computations in {(time.monotonic() - begin) / 60:.1f} minutes")
    left = [path.name for path in Path("/dev/shm").glob(f"graphmill-{os.getpid()}-*")]
    found += [f"left behind: {left}"] if left else []
    for each in found:
        say(f"FAILED: {each}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
