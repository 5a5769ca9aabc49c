"""The long version of the chaos tests: `scripts/chaos [workers|parent|interrupts ...] [--seed N] [...]`.

workers      at least 200 kills over 50 workloads; each result right to the last bit, nothing left behind, and
             no run longer than three undisturbed ones, the restarts, and the time that workers stood still
parent       kill -9 of the program at 100 random moments; nothing is left of it after 2 s
interrupts   SIGINT at 50 random moments; raised within 1 s, and the next result is right
"""

import argparse
import gc
import logging
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from graphmill import Engine
from tests.chaos.outside import interrupt, kill_parent
from tests.chaos.tormentor import Tormentor, workers_of
from tests.chaos.workloads import draw, same
from tests.engine.conftest import traces

PHASES = ("starting", "computing", "spilling", "closing")
#: Seconds from the death of a program until nothing may be left of it, and from SIGINT to the exception.
GONE, RAISED = 2.0, 1.0


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


@dataclass
class Run:
    """One disturbed run."""

    name: str
    #: Seconds that it took, that it takes undisturbed, and that it may take.
    taken: float
    usual: float
    allowed: float


def restart_time(engine):
    """Measure the seconds from a worker's death until another answers in its place; the worst of five."""
    worst = 0.0
    for _ in range(5):
        [victim, *_] = workers_of(engine)
        begin = time.monotonic()
        engine.pool.kill(next(n for n in range(engine.num_workers) if engine.pool.pid(n) == victim))
        # One task for each worker, none of which is told to be quick: it waits for the one that is killed.
        engine.get({("x", i): (time.sleep, 0.02) for i in range(engine.num_workers)}, [("x", 0)])
        worst = max(worst, time.monotonic() - begin)
    return worst


def workers(chance, kills=200, workloads=50):
    """Compute while workers are killed, stopped and resumed."""
    before = traces()
    failures, runs, killed, stopped = [], [], 0, 0
    with Engine(3, retries=50) as engine:
        draw(random.Random(0))[1].compute(scheduler=engine.get)
        restart = restart_time(engine)
        for number in range(workloads):
            name, work = draw(chance)
            begin = time.monotonic()
            expected = work.compute(scheduler=engine.get)
            usual = time.monotonic() - begin
            here = 0
            while here * workloads < kills:
                with Tormentor(engine, chance) as tormentor:
                    begin = time.monotonic()
                    found = work.compute(scheduler=engine.get)
                    taken = time.monotonic() - begin
                here += tormentor.kills
                stopped += tormentor.stops
                allowed = 3 * usual + tormentor.kills * restart + tormentor.stopped
                runs.append(Run(name, taken, usual, allowed))
                if not same(found, expected):
                    failures.append(f"{number} {name}: wrong result")
                if taken > allowed:
                    failures.append(
                        f"{number} {name}: took {taken:.2f} s, undisturbed {usual:.2f} s, "
                        f"allowed {allowed:.2f} s, {tormentor.kills} kills"
                    )
            killed += here
        del expected, found
        gc.collect()
        if engine.blocks.live:
            failures.append(f"{engine.blocks.live} bytes are still held")
    if traces() != before:
        failures.append(f"left behind: {before} became {traces()}")
    ratios = [run.taken / run.usual for run in runs]
    say(
        f"workers: {killed} kills and {stopped} stops over {workloads} workloads, {len(runs)} runs; restart "
        f"{restart:.2f} s; against undisturbed: median {statistics.median(ratios):.2f}, "
        f"worst {max(ratios):.2f}; against what is allowed: worst "
        f"{max(run.taken / run.allowed for run in runs):.2f}"
    )
    return failures


def parent(chance, moments=100):
    """Kill programs with -9."""
    failures, times = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(moments):
            phase = PHASES[number % len(PHASES)]
            try:
                times.append(kill_parent(phase, chance, Path(folder), limit=GONE))
            except AssertionError as error:
                failures.append(str(error))
    say(
        f"parent: nothing left {len(times)} of {moments} times; seconds until then: "
        f"median {statistics.median(times):.2f}, worst {max(times):.2f}"
    )
    return failures


def interrupts(chance, moments=50):
    """Interrupt a program with SIGINT."""
    with tempfile.TemporaryDirectory() as folder:
        delays = interrupt(moments, chance, Path(folder))
    late = [delay for delay in delays if delay > RAISED]
    say(
        f"interrupts: {len(delays) - len(late)} of {moments} raised within {RAISED} s, next results right; "
        f"seconds: median {statistics.median(delays):.2f}, worst {max(delays):.2f}"
    )
    return [f"raised after {delay:.2f} s" for delay in late]


WAYS = {function.__name__: function for function in (workers, parent, interrupts)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ways", nargs="*", choices=[*WAYS, []], default=[])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    options = parser.parse_args()
    logging.getLogger("graphmill").setLevel(logging.ERROR)  # each death is told there
    say(f"seed {options.seed}")
    failures = []
    for way in options.ways or WAYS:
        failures += WAYS[way](random.Random(options.seed))
    for failure in failures:
        say(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
