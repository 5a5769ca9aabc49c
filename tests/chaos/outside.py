"""Programs that are killed or interrupted from outside at random moments, and what is left of them."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

import graphmill

ROOT = Path(__file__).parents[2]
SHARED_MEMORY = Path("/dev/shm")
#: In the environment of a victim and of all that it starts: whose it is.
MARK = "CHAOS_VICTIM"
#: Seconds that a victim may take to get where it is wanted.
PATIENCE = 60


class Victim:
    """A program under way, in a folder of its own for temporary files and blocks on disk."""

    def __init__(self, phase: str, folder: Path):
        self.mark = uuid.uuid4().hex
        self.temporary, self.spill = folder / f"t-{self.mark}", folder / f"s-{self.mark}"
        self.temporary.mkdir()
        self.spill.mkdir()
        source = Path(graphmill.__file__).parents[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{source}:{ROOT}",
            "TMPDIR": str(self.temporary),
            MARK: self.mark,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.victim", phase, str(self.spill)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def hear(self):
        """Get the words of the next line that it says, one for each call."""
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        assert ready, f"the victim has said nothing for {PATIENCE} s"
        line = self.process.stdout.readline()
        assert line, f"the victim ended, exit code {self.process.wait(PATIENCE)}"
        return line.split()

    def left(self):
        """Say what is left of it: processes, shared memory, files."""
        pid = self.process.pid
        found = [f"process {other.pid}" for other in psutil.process_iter() if self._is_ours(other)]
        found += [path.name for path in SHARED_MEMORY.glob(f"graphmill-{pid}-*")]
        found += [path.name for folder in (self.temporary, self.spill) for path in folder.iterdir()]
        return found

    def _is_ours(self, process):
        with contextlib.suppress(psutil.Error):
            if process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                return process.environ().get(MARK) == self.mark
        return False


def kill_parent(phase: str, chance: random.Random, folder: Path, limit: float):
    """Kill a program with -9 at a random moment of a phase.

    Returns
    -------
    float
        Seconds until nothing was left of it.
    """
    with Victim(phase, folder) as victim:
        assert victim.hear() == ["go"]
        time.sleep(chance.uniform(0, 0.02 if phase == "closing" else 0.5))
        victim.process.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        victim.process.wait()
        while (left := victim.left()) and time.monotonic() - begin < limit:
            time.sleep(0.02)
        taken = time.monotonic() - begin
        assert not left, f"left {limit} s after kill -9 while {phase}: {left}"
    return taken


def interrupt(count: int, chance: random.Random, folder: Path):
    """Interrupt a program at random moments.

    Returns
    -------
    list of float
        For each interrupt, seconds until KeyboardInterrupt was raised.

    Raises
    ------
    AssertionError
        What was computed next was not right.
    """
    delays = []
    with Victim("interrupts", folder) as victim:
        assert victim.hear() == ["go"]
        for _ in range(count):
            time.sleep(chance.uniform(0, 1.5))
            sent = time.monotonic()
            victim.process.send_signal(signal.SIGINT)
            raised, right = victim.hear()
            assert right == "True"
            delays.append(float(raised) - sent)
    return delays
