"""One limit to all memory of an engine: what does not fit goes to disk, what cannot fit is told."""

import gc
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

from graphmill import config
from graphmill.engine import Engine, run
from graphmill.engine.limit import Limit
from graphmill.errors import ConfigError, MemoryLimitError, SpillFull
from tests.engine.conftest import SOURCE, traces

MB = 1 << 20
#: Elements of a block of 8 MB.
BLOCK = MB


def block(number):
    """Make a block of 8 MB."""
    return np.full(BLOCK, float(number))


def total(blocks):
    return sum(float(each[0]) + float(each[-1]) for each in blocks)


def plus_one(each):
    return each + 1


@contextmanager
def limited(room, **options):
    """Give an engine whose tasks have so many bytes, whatever the processes take."""
    gc.collect()  # what goes later would not be missed by then
    before = traces()
    with Engine(2) as engine:
        engine.get({"x": (block, 1)}, "x")
        private = engine.memory().private
    with Engine(2, memory_limit=private + room, **options) as engine:
        yield engine
    gc.collect()
    assert traces() == before


def joined(count):
    """A graph that needs all of its blocks at once, and what it gives."""
    dsk = {("x", i): (block, i) for i in range(count)}
    dsk["total"] = (total, [("x", i) for i in range(count)])
    return dsk, 2.0 * sum(range(count))


def test_what_does_not_fit_goes_to_disk():
    dsk, expected = joined(40)  # 320 MB
    with limited(150 * MB) as engine:
        assert engine.get(dsk, "total") == expected
        use = engine.memory()
        assert use.peak <= 1.05 * use.limit
        assert 170 * MB < use.spilled < 300 * MB
        assert use.read_back >= use.spilled
        assert (use.live, use.on_disk) == (0, 0), "all was given back"


def test_nothing_is_spilled_while_there_is_room():
    dsk, expected = joined(10)
    with limited(400 * MB) as engine:
        assert engine.get(dsk, "total") == expected
        use = engine.memory()
    assert use.spilled == 0
    assert use.peak_live >= 80 * MB


def test_results_may_be_larger_than_memory():
    keys = [("y", i) for i in range(40)]
    dsk = {key: (plus_one, (block, key[1])) for key in keys}
    with limited(150 * MB) as engine:
        for i, result in enumerate(engine.get(dsk, keys)):
            assert (result == i + 1).all()
        assert engine.memory().spilled > 150 * MB


def test_a_task_that_cannot_fit_is_named():
    with limited(100 * MB) as engine:
        with pytest.raises(MemoryLimitError, match=r"'huge'.* needs 1,600 MB or more.*chunks") as caught:
            engine.get({"huge": (np.ones, 200_000_000)}, "huge")
        assert isinstance(caught.value, MemoryError)
        assert engine.get({"x": (plus_one, 1)}, "x") == 2, "the engine is still good"


def test_a_task_gets_what_it_needs_if_it_is_alone():
    # None is expected to need 70 MB; two at once would be too much.
    dsk = {("x", i): (np.ones, 9_000_000) for i in range(4)}
    dsk |= {("sum", i): (np.sum, ("x", i)) for i in range(4)}
    with limited(110 * MB) as engine:
        assert engine.get(dsk, [("sum", i) for i in range(4)]) == (9e6,) * 4
        use = engine.memory()
        assert use.peak <= 1.05 * use.limit


def test_a_result_that_cannot_fit_is_told_of_before_it_is_made():
    x = da.ones(40 * BLOCK, chunks=BLOCK) + 1
    with limited(150 * MB) as engine:
        with pytest.raises(MemoryLimitError, match=r"The result has .* MB.*to_zarr"):
            x.compute(scheduler=engine.get)
        assert float(x.sum().compute(scheduler=engine.get)) == 2 * 40 * BLOCK


def test_a_full_disk_is_told_and_costs_no_engine():
    dsk, _ = joined(40)
    with limited(120 * MB, spill_limit=20 * MB) as engine:
        with pytest.raises(SpillFull, match="spill_limit"):
            engine.get(dsk, "total")
        use = engine.memory()
        assert (use.live, use.on_disk) == (0, 0)
        small, expected = joined(3)
        assert engine.get(small, "total") == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 80 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=80m none {folder} 2>/dev/null"):
        pytest.skip("nothing can be mounted here")
    yield folder
    assert os.system(f"umount {folder}") == 0


def test_a_disk_that_is_full_in_the_middle_is_told_and_costs_no_engine(small_disk):
    dsk, _ = joined(40)
    small, expected = joined(16)
    with limited(120 * MB, spill_folder=small_disk) as engine:
        for _ in range(2):
            with pytest.raises(SpillFull, match=r"the disk has .*spill_folder="):
                engine.get(dsk, "total")
            use = engine.memory()
            assert use.spilled > 20 * MB, "some has moved before"
            assert (use.live, use.on_disk) == (0, 0)
        assert engine.get(small, "total") == expected, "what had moved has gone from the disk"
    assert list(small_disk.iterdir()) == []


LITTLE_SHARED_MEMORY = """
import os, tempfile
import dask.array as da
import numpy as np
import zarr
from graphmill.engine import Engine

with Engine(2) as engine:
    engine.get({"x": (np.ones, 9)}, "x")
    taken = engine.memory().private
with Engine(2, memory_limit=taken + (250 << 20)) as engine:
    x = da.ones((6000, 6000), chunks=(500, 6000))  # 288 MB
    x = (x + da.arange(6000, chunks=6000)).rechunk((6000, 500))
    assert float((x + x.T).mean().compute(scheduler=engine.get)) == 2 + 5999
    with tempfile.TemporaryDirectory() as folder:
        x.to_zarr(folder + "/x.zarr", compute=False).compute(scheduler=engine.get)
        stored = da.from_zarr(folder + "/x.zarr")
        assert float(stored.sum().compute(scheduler=engine.get)) == 6000**2 * (1 + 5999 / 2)
    use = engine.memory()
    assert use.peak <= 1.05 * use.limit, use
    print(os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize >> 20, use.spilled > 0)
"""


def test_a_limit_holds_with_little_shared_memory():
    command = 'mount -t tmpfs -o size=64m none /dev/shm || exit 77; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", command, "sh", sys.executable, "-c", LITTLE_SHARED_MEMORY]
    try:
        ran = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=100,
            env={**os.environ, "PYTHONPATH": SOURCE},
        )
    except FileNotFoundError:
        pytest.skip("nothing can be mounted here")
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip("nothing can be mounted here")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["64", "True"]
    assert "There are only 64 MB of shared memory here" in ran.stderr


def test_a_limit_below_what_the_program_has():
    held = np.ones(16 * BLOCK)
    with Engine(1, memory_limit="100MB") as engine, pytest.raises(MemoryLimitError, match="processes take"):
        engine.get({"x": (plus_one, 1)}, "x")
    del held


@pytest.mark.parametrize(("capacity", "advice"), [(0, "fewer workers"), (30 * MB, "smaller chunks")])
def test_what_is_advised_depends_on_what_takes_the_memory(capacity, advice):
    limit = SimpleNamespace(capacity=capacity, at_rest=100 * MB, nbytes=100 * MB + capacity)
    assert advice in run._too_big("x", 40 * MB, limit)


class Books:
    """Stands for the books about blocks."""

    warm = common_warm = 0

    def __init__(self, *, warm_limit, resident):
        self.warm_limit, self.resident = warm_limit, resident

    def look(self):
        pass

    def occupied(self):
        return self.resident


@pytest.mark.parametrize(
    ("resident", "given", "kept"),
    [
        (0, 0, 64 * MB),
        (0, 990 * MB, 64 * MB),
        (700 * MB, 0, 64 * MB),
        (760 * MB, 0, 0),
        (760 * MB, 990 * MB, 0),
    ],
)
def test_pages_are_kept_while_memory_is_not_short(resident, given, kept):
    blocks = Books(warm_limit=128 * MB, resident=resident)
    crew = SimpleNamespace(warm_limit=64 * MB, warm=0, size=2, at_work=list)
    limit = Limit(1000 * MB, list, blocks, crew)
    limit.given = given
    limit.keep_warm_or_not()
    assert (blocks.warm_limit, crew.warm_limit) == (2 * kept, kept)
    blocks.resident = 0
    limit.keep_warm_or_not()
    assert (blocks.warm_limit, crew.warm_limit) == (128 * MB, 64 * MB), "there is enough again"


def test_what_processes_will_have_that_are_yet_to_start_is_kept_for_them():
    blocks = Books(warm_limit=0, resident=0)
    crew, pids = SimpleNamespace(warm_limit=0, warm=0, size=4, at_work=list), [os.getpid()]
    limit = Limit(1000 * MB, lambda: pids, blocks, crew)
    limit.look()
    own = limit.private
    kept = 5 * min(own // 2, 48 * MB)
    assert own > 0
    assert limit.capacity == limit.free == 1000 * MB - own - kept
    crew.size = -1
    limit.look(again=True)
    assert limit.capacity == 1000 * MB - limit.private


def test_what_a_job_has_for_itself_counts_once():
    blocks = Books(warm_limit=0, resident=0)
    own = os.getpid()
    crew = SimpleNamespace(warm_limit=0, warm=0, size=-1, at_work=list)
    limit = Limit(10_000 * MB, lambda: [own], blocks, crew)
    limit.look()
    before = limit.private
    held = np.ones(200 * MB // 8)  # larger than what goes through shared memory, were this a worker
    crew.at_work = lambda: [(own, before)]
    limit.look(again=True)
    assert limit.private >= before + held.nbytes
    assert limit.capacity == pytest.approx(10_000 * MB - before, abs=20 * MB)
    assert limit.free == pytest.approx(10_000 * MB - before - held.nbytes, abs=20 * MB)
    limit.given = 300 * MB
    assert limit.free == pytest.approx(10_000 * MB - before - limit.given, abs=20 * MB)
    crew.at_work = list  # done, and it still has it
    limit.given = 0
    limit.look(again=True)
    assert limit.capacity == limit.free == 10_000 * MB - limit.private


def hold_in_a_cycle(nbytes, more):
    """Take private memory that frames in a cycle hold, then too much shared memory."""
    held = bytearray(nbytes)
    try:
        return np.ones(more // 8)
    except MemoryError as error:
        held_on = [held, error]
        error.add_note(repr(held_on.append(held_on)))
        raise


def test_what_a_task_had_that_got_too_little_is_given_back():
    with limited(150 * MB) as engine:
        with pytest.raises(MemoryLimitError):
            engine.get({"x": (hold_in_a_cycle, 60 * MB, 300 * MB)}, "x")
        use = engine.memory()
        assert use.private < use.limit - 120 * MB


@pytest.mark.parametrize("limit", [0, -1, "much", "120 %%", 0.5, 1.0, "1MB"])
def test_nonsense(limit):
    with pytest.raises(ConfigError, match="memory_limit"):
        Engine(1, memory_limit=limit)


def test_other_limits_that_are_nonsense():
    for name in ("warm_limit", "spill_limit"):
        with pytest.raises(ConfigError, match=name):
            Engine(1, **{name: "much"})


def test_settings(monkeypatch):
    monkeypatch.setenv("GRAPHMILL_MEMORY_LIMIT", "900MB")
    with Engine(1) as engine:
        assert engine.memory().limit == 900_000_000
    with config.set(memory_limit="2GB"), Engine(1) as engine:
        assert engine.memory().limit == 2_000_000_000
    with Engine(1, memory_limit="1GB") as engine:
        assert engine.memory().limit == 1_000_000_000


def test_the_default_engine_follows_its_settings(script):
    source = """
import os
import graphmill
from graphmill import engine
from graphmill.config import set

dsk = {"x": (abs, -1)}
graphmill.get(dsk, "x")
first = engine._defaults[os.getpid()].engine
graphmill.get(dsk, "x")
assert engine._defaults[os.getpid()].engine is first
with set(memory_limit="3GB"):
    graphmill.get(dsk, "x")
    print(engine._defaults[os.getpid()].engine.memory().limit, first.closed)
"""
    assert script(source) == "3000000000 True\n"


def test_memory_is_told():
    with Engine(2, memory_limit="2GB") as engine:
        kept = engine.get({"x": (block, 1)}, "x")
        use = engine.memory()
        assert use.limit == 2_000_000_000
        assert use.live >= kept.nbytes
        assert use.total == use.private + use.arenas
        assert use.arenas >= use.live
        assert use.peak >= use.total
        assert re.search(r"limit=2000000000\b", repr(use))
