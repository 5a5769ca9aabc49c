"""Kills workers, stops them and lets them go on, at random."""

import os
import random
import signal
import threading
import time
from contextlib import suppress

import psutil


class Tormentor:
    """While it is entered, a thread of its disturbs the workers of an engine.

    Parameters
    ----------
    engine
        Whose workers.
    chance
        Decides whom, how and when.
    pause
        Seconds from one disturbance to the next, at most.
    stops
        How many of the disturbances are stops; the others are kills.
    """

    def __init__(self, engine, chance: random.Random, pause: float = 0.3, stops: float = 0.3):
        self._engine = engine
        self._chance = chance
        self._pause = pause
        self._stops = stops
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tormentor")
        self.kills = 0
        self.stops = 0
        #: Seconds during which some worker stood still.
        self.stopped = 0.0

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _run(self):
        while not self._over.wait(self._chance.uniform(0, self._pause)):
            victims = workers_of(self._engine)
            if not victims:
                continue
            victim = self._chance.choice(victims)
            if self._chance.random() < self._stops:
                self._stop(victim)
            elif _signal(victim, signal.SIGKILL):
                self.kills += 1

    def _stop(self, victim):
        begin = time.monotonic()
        if not _signal(victim, signal.SIGSTOP):
            return
        try:
            self.stops += 1
            self._over.wait(self._chance.uniform(0, 0.2))
        finally:
            _signal(victim, signal.SIGCONT)
            self.stopped += time.monotonic() - begin


def workers_of(engine):
    """List the processes of an engine's workers, those too that have just been forked."""
    template = engine.pool.template_pid
    if template is None:
        return []
    with suppress(psutil.Error):
        return sorted(child.pid for child in psutil.Process(template).children())
    return []


def _signal(pid, signum):
    """Send a signal to a child of a template; False if it is gone. Its number may be another's by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        name = psutil.Process(pid).name()
        if not name.startswith(("graphmill-", "python")):
            return False
        signal.pidfd_send_signal(descriptor, signum)
    except (ProcessLookupError, psutil.Error):
        return False
    finally:
        os.close(descriptor)
    return True
