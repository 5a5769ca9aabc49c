"""Private memory: of real processes that share pages, and of made-up ones whose times are known."""

import contextlib
import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from graphmill import footprint
from graphmill.footprint import (
    PATIENCE,
    REFRESH,
    PeakMemory,
    PrivateMemory,
    exact_private_bytes,
    private_bytes,
    resident_bytes,
)

MB = 1 << 20
LIMIT = 60

linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")

#: A process that has some memory, forks children that share it, and does what it is told line by line.
#: In each child, the first half of the memory is written to when the child is told so.
FAMILY = """
import ctypes, mmap, os, signal, sys

MB = 1 << 20
shared = bytearray(os.urandom(1)) * (64 * MB)

def child(orders, answers):
    own = bytearray(b"x") * (32 * MB)
    os.write(answers, b".")
    while os.read(orders, 1):
        shared[:32 * MB:4096] = b"y" * (32 * MB // 4096)
        os.write(answers, b".")
    os._exit(0)

pids, orders = [], []
answers, answer = os.pipe()
for _ in range(int(sys.argv[1])):
    order, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        for other in orders:
            os.close(other)
        child(order, answer)
    os.close(order)
    pids.append(pid)
    orders.append(end)
    assert os.read(answers, 1)
print(*pids, flush=True)
for line in sys.stdin:
    number = int(line)
    os.write(orders[number], b".")
    assert os.read(answers, 1)
    print("done", flush=True)
"""


class Family:
    def __init__(self, process):
        self.process = process
        self.pids = [process.pid, *map(int, process.stdout.readline().split())]
        self.children = [psutil.Process(pid) for pid in self.pids[1:]]

    def write_in(self, number):
        """Have a child write to half of what it shares."""
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


@contextlib.contextmanager
def family(children):
    with subprocess.Popen(
        [sys.executable, "-c", FAMILY, str(children)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        made = Family(process)
        try:
            yield made
            process.stdin.close()
            assert process.wait(LIMIT) == 0
            assert psutil.wait_procs(made.children, LIMIT)[1] == []
        finally:
            process.kill()


def is_about(nbytes, expected):
    """Compare; 16 MB are for interpreters and for counters that lag behind."""
    return expected - 4 * MB < nbytes < expected + 16 * MB


@linux
def test_forks_share_pages():
    with family(2) as made:
        parent, *children = made.pids
        assert is_about(private_bytes(parent), 64 * MB)
        for child in children:
            assert is_about(private_bytes(child), 96 * MB)
        assert is_about(sum(map(exact_private_bytes, made.pids)), 128 * MB)


@linux
def test_what_is_shared_is_counted_once():
    now = [0.0]
    with family(2) as made:
        memory = PrivateMemory(lambda: made.pids, clock=lambda: now[0])
        assert is_about(memory.sample(), 128 * MB)
        assert memory.last.keys() == set(made.pids)
        assert sum(memory.last.values()) == memory.sample()
        # The copies that a child makes are missed only until it is looked at again.
        made.write_in(0)
        assert is_about(memory.sample(), 128 * MB)
        now[0] += REFRESH
        for _ in made.pids:
            found = memory.sample()
        assert is_about(found, 160 * MB)


@linux
def test_growth_is_seen_at_once():
    memory = PrivateMemory(lambda: [os.getpid()])
    before = memory.sample()
    block = bytearray(b"x") * (64 * MB)
    assert is_about(memory.sample() - before, 64 * MB)
    del block


@linux
def test_maps_of_files_are_not_private(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * MB))
    before = private_bytes(os.getpid()), exact_private_bytes(os.getpid())
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert sum(data[:: mmap.PAGESIZE]) == 0
        after = private_bytes(os.getpid()), exact_private_bytes(os.getpid())
    assert max(after[0] - before[0], after[1] - before[1]) < 16 * MB


@linux
def test_a_dead_process_has_none():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        memory = PrivateMemory(lambda: [process.pid])
        assert memory.sample() > 0
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
        assert (private_bytes(process.pid), exact_private_bytes(process.pid)) == (0, 0)
        assert memory.sample() == 0
        process.wait(LIMIT)
        assert (private_bytes(process.pid), exact_private_bytes(process.pid)) == (0, 0)
        assert memory.sample() == 0


# ---- systems that tell less


def test_without_proc_psutil_is_asked(tmp_path):
    assert private_bytes(os.getpid(), proc=tmp_path) > 0
    assert exact_private_bytes(os.getpid(), proc=tmp_path) > 0
    assert PrivateMemory(lambda: [os.getpid(), os.getppid()], proc=tmp_path).sample() > 0


def test_a_dead_process_has_none_without_proc(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(LIMIT)
    assert private_bytes(process.pid, proc=tmp_path) == 0
    assert exact_private_bytes(process.pid, proc=tmp_path) == 0


def test_a_process_that_may_not_be_looked_at_counts_in_full(processes, monkeypatch):
    class Forbidden:
        def __init__(self, pid):
            self.pid = pid

        def memory_full_info(self):
            raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(footprint.psutil, "Process", Forbidden)
    processes.put(1, fast=100 * MB)
    assert exact_private_bytes(1, proc=processes.proc) == 100 * MB
    assert processes.memory.sample() == 100 * MB


# ---- when it looks exactly


class Processes:
    """Made-up processes in a made-up /proc, and a clock that exact looks take time of."""

    def __init__(self, proc, monkeypatch):
        self.proc = proc
        (proc / "self").mkdir()
        self.pids = []
        self.now = 1000.0
        #: Seconds that each exact look takes.
        self.cost = 0.001
        #: Which were looked at exactly.
        self.looks = []
        self.memory = PrivateMemory(lambda: self.pids, proc=proc, clock=lambda: self.now)
        look = footprint.others_share
        monkeypatch.setattr(footprint, "others_share", lambda pid, *, proc: self.looked(look, pid))

    def looked(self, look, pid):
        self.looks.append(pid)
        self.now += self.cost
        return look(pid, proc=self.proc)

    def put(self, pid, *, fast, shared=None):
        """Have a process that has so much, and so much of it is others' share."""
        if pid not in self.pids:
            self.pids.append(pid)
        folder = self.proc / str(pid)
        folder.mkdir(exist_ok=True)
        pages = fast // mmap.PAGESIZE
        (folder / "statm").write_text(f"{pages + 999} {pages + 77} 77 1 0 1 0\n")
        if shared is not None:
            kilobytes = fast >> 10
            (folder / "smaps_rollup").write_text(
                "5-7 ---p 00000000 00:00 0    [rollup]\nRss:    1 kB\n"
                f"Pss_Anon:  {kilobytes - (shared >> 10)} kB\n"
                f"Anonymous:   {kilobytes} kB\n"
            )

    def sample(self):
        """Take a sample, and tell it and who was looked at exactly."""
        self.looks = []
        return self.memory.sample(), self.looks


@pytest.fixture
def processes(tmp_path, monkeypatch):
    return Processes(tmp_path, monkeypatch)


@pytest.fixture
def three(processes):
    for pid in (1, 2, 3):
        processes.put(pid, fast=100 * MB, shared=40 * MB)
    return processes


def test_each_is_looked_at_when_it_is_first_seen(three):
    assert three.sample() == (180 * MB, [1, 2, 3])
    assert three.memory.last == {1: 60 * MB, 2: 60 * MB, 3: 60 * MB}
    assert three.sample() == (180 * MB, [])


def test_the_own_process_is_never_looked_at(processes):
    processes.put(os.getpid(), fast=100 * MB, shared=40 * MB)
    assert processes.sample() == (100 * MB, [])
    processes.now += 100
    assert processes.sample() == (100 * MB, [])


def test_later_looks_are_one_at_a_time_in_turn(three):
    three.sample()
    for pid in (1, 2, 3):
        three.put(pid, fast=100 * MB, shared=10 * MB)
    three.now += 100
    found = []
    for _ in range(4):
        found.append(three.sample())
        three.now += PATIENCE * three.cost
    assert found == [(210 * MB, [1]), (240 * MB, [2]), (270 * MB, [3]), (270 * MB, [])]


@pytest.mark.parametrize("cost", [0.0001, 0.004, 0.5])
def test_looks_take_little_of_the_time(three, cost):
    three.sample()
    three.cost = cost
    start, count, step = three.now, 0, 0.01
    while three.now < start + 3000 * step:
        count += len(three.sample()[1])
        three.now += step
    seconds = three.now - start
    # The first three looks make it wait before, the last one after.
    assert count * cost <= seconds / PATIENCE + cost
    assert count <= 3 * (seconds / REFRESH + 1)
    assert count > 0


def test_looks_wait_after_dear_ones(three):
    three.cost = 0.1
    three.sample()
    three.now += 3 * PATIENCE * three.cost - 0.4
    assert three.sample()[1] == []
    three.now += 0.4
    assert three.sample()[1] == [1]


def test_new_ones_are_looked_at_even_then_and_those_that_share_with_them(three):
    three.cost = 10
    three.sample()
    three.put(4, fast=50 * MB, shared=10 * MB)
    three.put(1, fast=100 * MB, shared=60 * MB)
    assert three.sample() == (200 * MB, [1, 2, 3, 4])


def test_all_are_due_when_one_has_gone(three):
    three.sample()
    three.now += REFRESH / 2
    assert three.sample()[1] == []
    three.pids.remove(1)
    for pid in (2, 3):
        three.put(pid, fast=100 * MB, shared=30 * MB)
    assert three.sample() == (130 * MB, [2])
    three.now += PATIENCE * three.cost
    assert three.sample() == (140 * MB, [3])


def test_a_process_that_has_gone_is_forgotten(three):
    three.sample()
    three.pids.remove(1)
    assert three.sample()[0] == 120 * MB
    assert three.memory.last.keys() == {2, 3}
    three.put(1, fast=100 * MB, shared=0)  # another of the same number
    total, looks = three.sample()
    assert total == 220 * MB
    assert 1 in looks


def test_a_process_that_gives_back_what_it_shared_is_never_below_nothing(three):
    three.sample()
    three.put(1, fast=10 * MB)
    assert three.sample()[0] == 120 * MB


def test_no_process_at_all(processes):
    assert processes.sample() == (0, [])


def test_one_that_is_named_twice_counts_once(three):
    three.pids.append(1)
    assert three.sample()[0] == 180 * MB


# ---- what was taken for a while


@pytest.fixture
def peak(monkeypatch):
    """What notes the peak of this process, however brief."""
    monkeypatch.setattr(footprint, "_BRIEF", 0.0)
    made = PeakMemory()
    yield made
    made.close()
    made.close()


def held_for_a_while(nbytes):
    data = b"x" * nbytes
    return len(data)


@linux
def test_what_was_given_back_is_noted(peak):
    for nbytes in (100 * MB, 30 * MB):
        peak.begin(*resident_bytes(os.getpid()))
        held_for_a_while(nbytes)
        peak.note()
        assert peak.take() == pytest.approx(nbytes, abs=4 * MB)
        assert peak.take() == 0


@linux
def test_what_is_mapped_is_no_memory_of_its_own(peak, tmp_path):
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(100 * MB)
        with mmap.mmap(file.fileno(), 100 * MB) as memory:
            peak.begin(*resident_bytes(os.getpid()))
            memory[:] = bytes(1) * len(memory)
            peak.note()
            assert peak.take() == pytest.approx(100 * MB, abs=4 * MB), "what was written, and no more"


def test_what_is_brief_is_not_looked_at(peak, monkeypatch):
    monkeypatch.setattr(footprint, "_BRIEF", LIMIT)
    peak.begin(*resident_bytes(os.getpid()))
    held_for_a_while(30 * MB)
    peak.note()
    assert peak.take() == 0


def test_nothing_is_noted_before_it_begins(peak):
    held_for_a_while(30 * MB)
    peak.note()
    assert peak.take() == 0


def test_without_proc_no_peak_is_found(tmp_path):
    peak = PeakMemory(proc=tmp_path)
    peak.begin(*resident_bytes(os.getpid()))
    held_for_a_while(30 * MB)
    peak.note()
    assert peak.take() == 0
    peak.close()
