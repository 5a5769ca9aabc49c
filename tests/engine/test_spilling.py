"""Blocks that move to disk while graphs run: everything reads as before, and nothing is left."""

import gc
import operator
import os
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
import pytest

from graphmill.engine import Engine, choices
from graphmill.engine.blocks import PARENT, Blocks
from graphmill.errors import ConfigError, SpillError, SpillFull
from graphmill.local import get_sync
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import Encoded, Extent
from graphmill.memory.commons import UNIT
from graphmill.memory.spill import SpillFile
from tests.engine.conftest import LIMIT, left_of, traces
from tests.engine.test_programs import program  # noqa: F401 - a fixture

LENGTH = 16 * PAGE
SPILL = 9
BIG = 200_000  # elements of a float64 array that lies in shared memory for certain
BYTES = -(-8 * BIG // UNIT) * UNIT


# ---- the count of blocks, by itself


@dataclass
class Store:
    """Blocks in one segment and a spill file, without processes."""

    arena: Arena
    folder: Path
    limit: int | None = None
    #: Ranges given back: where, and whether their pages are there.
    freed: list = field(default_factory=list)
    gone: list = field(default_factory=list)
    files: list = field(default_factory=list)

    def __post_init__(self):
        self.blocks = Blocks(0, self.gone.append, self.open_spill)
        self.blocks.add_arena(self.arena, lambda block, length, warm: self.freed.append((block.offset, warm)))

    def open_spill(self):
        self.files.append(SpillFile(self.folder, SPILL, self.limit))
        return self.files[-1]

    def extent(self, number, offset=0, nbytes=LENGTH):
        """A buffer in one of the blocks, each of which holds its number, plus one."""
        start = number * LENGTH
        self.arena.shared[start : start + LENGTH] = bytes([number + 1]) * LENGTH
        return Extent(self.arena.number, start, offset, nbytes, LENGTH)

    def kept(self, *extents):
        value = Encoded.of(b"", extents)
        self.blocks.keep(value)
        return value

    def content(self, extent):
        arena = self.arena if extent.arena == self.arena.number else self.files[0].arena
        start = extent.block + extent.offset
        return arena.private[start : start + extent.nbytes]


@pytest.fixture
def store(tmp_path):
    with Arena.create(0, 16 * LENGTH) as arena:
        arena.reserve(0, arena.size)
        made = Store(arena, tmp_path)
        yield made
        made.blocks.close()
    assert list(tmp_path.iterdir()) == []


class TestBlocks:
    def test_a_block_moves_and_is_freed_on_disk(self, store):
        value = store.kept(store.extent(0, 10, 100))
        before = store.arena.occupied()
        assert store.blocks.spill(value) == LENGTH
        (extent,) = value.extents
        assert (extent.arena, extent.offset, extent.nbytes, extent.length) == (SPILL, 10, 100, LENGTH)
        assert store.content(extent) == b"\1" * 100
        assert store.freed == [(0, False)]
        assert store.arena.occupied() == before - LENGTH
        blocks = store.blocks
        assert (blocks.live, blocks.on_disk, blocks.resident, blocks.spilled) == (LENGTH, LENGTH, 0, LENGTH)
        blocks.let_go(value)
        assert (blocks.live, blocks.on_disk, blocks.resident, blocks.spilled) == (0, 0, 0, LENGTH)
        assert store.files[0].arena.occupied() < LENGTH

    @pytest.mark.parametrize(
        ("of_worker", "limit", "warm"), [(True, LENGTH, 3), (False, LENGTH, 1), (True, 0, 0)]
    )
    def test_a_worker_keeps_pages_that_were_needed_at_once(self, store, of_worker, limit, warm):
        blocks = store.blocks
        blocks.warm_limit = limit
        blocks.add_arena(store.arena, lambda *freed: store.freed.append(freed[-1]), of_worker=of_worker)
        for value in [store.kept(store.extent(number)) for number in range(3)]:
            blocks.let_go(value)
        assert (sum(store.freed), blocks.warm) == (warm, warm * LENGTH)
        if warm == 3:
            blocks.rested(store.arena.number, LENGTH)
            blocks.let_go(store.kept(store.extent(4)))
            assert store.freed[-1], "its own page is warm again"
            assert blocks.warm <= 2 * LENGTH

    def test_there_is_no_file_before_the_first_move(self, store):
        store.kept(store.extent(0))
        assert store.files == []
        assert list(store.folder.iterdir()) == []

    def test_it_does_not_move_again(self, store):
        value = store.kept(store.extent(0))
        store.blocks.spill(value)
        place = value.extents
        assert not store.blocks.movable(place[0].id)
        assert store.blocks.spill(value) == 0
        assert value.extents == place
        assert store.blocks.spilled == LENGTH

    def test_all_values_in_a_block_are_told(self, store):
        first = store.kept(store.extent(0), store.extent(1), store.extent(0, 8, 8))
        second = store.kept(store.extent(1, 100, 5), store.extent(2))
        assert store.blocks.spill(first) == 2 * LENGTH
        assert [extent.arena for extent in first.extents] == [SPILL] * 3
        assert first.extents[0].id == first.extents[2].id != first.extents[1].id == second.extents[0].id
        assert second.extents[1].arena == 0
        contents = [[store.content(extent) for extent in value.extents] for value in (first, second)]
        assert contents == [[b"\1" * LENGTH, b"\2" * LENGTH, b"\1" * 8], [b"\2" * 5, b"\3" * LENGTH]]
        store.blocks.let_go(first)
        assert (store.blocks.on_disk, store.blocks.resident) == (LENGTH, LENGTH)
        assert store.content(second.extents[0]) == b"\2" * 5
        store.blocks.let_go(second)
        assert store.blocks.live == 0

    def test_what_others_need_stays(self, store):
        extent = store.extent(0)
        value = store.kept(extent, store.extent(1))
        store.blocks.hold([extent])
        assert store.blocks.spill(value) == LENGTH
        assert value.extents[0] == extent
        store.blocks.drop([extent])
        store.blocks.pin(extent.id, PARENT)
        assert store.blocks.spill(value) == 0
        store.blocks.unpin(extent.id, PARENT)
        assert store.blocks.movable(extent.id)
        assert store.blocks.spill(value) == LENGTH
        assert store.content(value.extents[0]) == b"\1" * LENGTH

    def test_what_nobody_keeps_does_not_move(self, store):
        extent = store.extent(0)
        assert not store.blocks.movable(extent.id)
        store.blocks.hold([extent])
        assert not store.blocks.movable(extent.id)
        assert store.blocks.spill(Encoded.of(b"", [extent])) == 0

    def test_holds_and_pins_on_disk(self, store):
        value = store.kept(store.extent(0))
        store.blocks.spill(value)
        extents = value.extents
        store.blocks.hold(extents)
        store.blocks.pin(extents[0].id, 1)
        store.blocks.let_go(value)
        store.blocks.drop(extents)
        assert store.blocks.on_disk == LENGTH
        assert store.blocks.pinned_by(1) == [extents[0].id]
        store.blocks.unpin(extents[0].id, 1)
        assert store.blocks.on_disk == 0

    def test_no_room_for_the_second(self, store):
        store.limit = LENGTH
        value = store.kept(store.extent(0), store.extent(1))
        with pytest.raises(SpillFull, match="spill_limit"):
            store.blocks.spill(value)
        assert sorted(extent.arena for extent in value.extents) == [0, SPILL]
        assert [store.content(extent)[:1] for extent in value.extents] == [b"\1", b"\2"]
        assert (store.blocks.on_disk, store.blocks.resident) == (LENGTH, LENGTH)
        store.blocks.let_go(value)
        assert store.blocks.live == 0
        assert sorted(store.freed) == [(0, False), (LENGTH, False)]

    def test_the_last_block_of_a_dead_worker(self, store):
        first, second = store.kept(store.extent(0)), store.kept(store.extent(1))
        store.blocks.retire(0)
        store.blocks.spill(first)
        assert store.gone == []
        assert store.arena.occupied() == LENGTH
        store.blocks.spill(second)
        assert store.gone == [0]
        assert [store.content(value.extents[0])[:1] for value in (first, second)] == [b"\1", b"\2"]
        store.blocks.let_go(first)
        store.blocks.let_go(second)
        assert store.freed == []


# ---- in a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("spill")


@pytest.fixture(scope="module")
def engine(folder):
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it lives as long as the process
    before = traces()
    with Engine(2, warm_limit=0, spill_folder=folder) as made:
        yield made
    gc.collect()
    assert traces() == before
    assert list(folder.iterdir()) == []


@pytest.fixture(autouse=True)
def _all_is_freed(request):
    yield
    if "engine" in request.fixturenames:
        gc.collect()
        engine = request.getfixturevalue("engine")
        with engine.access():
            pass
        assert (engine.blocks.live, engine.blocks.on_disk, engine.blocks.occupied()) == (0, 0, 0)
        for file in request.getfixturevalue("folder").glob("*/*"):
            assert file.stat().st_blocks * 512 < PAGE * 16


class Spilling:
    """Callbacks that move all that can be moved before each task starts."""

    def __init__(self, engine, *only):
        self.engine = engine
        #: Values of these keys only, if there are any.
        self.only = only
        #: The keys whose blocks have moved, and how many bytes.
        self.moved = {}
        self.callbacks = (None, None, self.pretask, None, None)

    def pretask(self, key, dsk, state):
        self.spill(state)

    def spill(self, state):
        for key, value in state.cache.items():
            if isinstance(value, Encoded) and (not self.only or key in self.only):
                with self.engine.access():
                    moved = self.engine.blocks.spill(value)
                if moved:
                    self.moved[key] = self.moved.get(key, 0) + moved


def numbers(n):
    return np.arange(n, dtype=np.float64)


def total(*arrays):
    return sum(float(array.sum()) for array in arrays)


SUM = BIG * (BIG - 1) / 2


class TestRuns:
    def test_a_value_is_read_from_disk(self, engine, folder):
        seen = []

        class Watching(Spilling):
            def pretask(self, key, dsk, state):
                before = engine.blocks.occupied()
                super().pretask(key, dsk, state)
                seen.append((before, engine.blocks.occupied(), engine.blocks.on_disk))

        spilling = Watching(engine)
        dsk = {"x": (numbers, BIG), "y": (total, "x")}
        assert engine.get(dsk, "y", callbacks=spilling.callbacks) == SUM
        assert spilling.moved == {"x": BYTES}
        assert seen == [(0, 0, 0), (BYTES, 0, BYTES)]
        (made,) = folder.iterdir()
        assert stat.S_IMODE(made.stat().st_mode) == 0o700

    def test_changes_are_the_tasks_own(self, engine):
        dsk = {
            "x": (np.ones, BIG),
            "doubled": (operator.imul, "x", 2.0),
            "tripled": (operator.imul, "x", 3.0),
            "plain": (np.sum, "x"),
            "sums": (lambda a, b: (a.sum(), b.sum()), "doubled", "tripled"),
        }
        spilling = Spilling(engine)
        found = engine.get(dsk, ["plain", "sums"], callbacks=spilling.callbacks)
        assert found == (BIG, (2 * BIG, 3 * BIG))
        assert spilling.moved.keys() >= {"x"}

    def test_a_view_of_an_input_on_disk_is_no_copy(self, engine):
        places = {}

        class Watching(Spilling):
            def spill(self, state):
                super().spill(state)
                places.update(
                    (key, value.extents[0].id) for key, value in state.cache.items() if key != "sum"
                )

        dsk = {"x": (numbers, BIG), "tail": (lambda x: x[1:], "x"), "sum": (total, "tail")}
        spilling = Watching(engine)
        tail, found = engine.get(dsk, ["tail", "sum"], callbacks=spilling.callbacks)
        assert found == SUM
        assert np.array_equal(tail, numbers(BIG)[1:])
        assert spilling.moved == {"x": BYTES}
        assert places["tail"] == places["x"]
        assert engine.blocks.resident == 0

    def test_aliases_move_together(self, engine):
        dsk = {"x": (numbers, BIG), "a": "x", "b": "a", "sums": (total, "x", "a", "b")}
        spilling = Spilling(engine)
        assert engine.get(dsk, ["sums"], callbacks=spilling.callbacks) == (3 * SUM,)
        assert sum(spilling.moved.values()) == BYTES

    def test_results_are_the_users(self, engine):
        spilling = Spilling(engine)
        dsk = {"x": (numbers, BIG), "y": (abs, -1), "z": (lambda x, y: x[:10].copy(), "x", "y")}
        x, _ = engine.get(dsk, ["x", "z"], callbacks=spilling.callbacks)
        assert spilling.moved == {"x": BYTES}
        x += 1
        assert total(x) == SUM + BIG
        assert engine.blocks.on_disk == BYTES

    def test_results_outlive_the_engine(self, tmp_path):
        with Engine(1, spill_folder=tmp_path) as engine:
            spilling = Spilling(engine)
            dsk = {"x": (numbers, BIG), "y": (len, "x")}
            x, _ = engine.get(dsk, ["x", "y"], callbacks=spilling.callbacks)
            assert spilling.moved == {"x": BYTES}
        assert list(tmp_path.iterdir()) == []
        assert np.array_equal(x, numbers(BIG))

    def test_the_input_of_a_running_task_stays(self, engine, tmp_path):
        go = tmp_path / "go"

        def slow(x):
            deadline = time.monotonic() + LIMIT
            while not go.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            return float(x.sum())

        moved = []

        def posttask(key, value, dsk, state, worker):
            if key == "quick":
                with engine.access():
                    x = state.cache["x"]
                    moved.extend([engine.blocks.movable(x.extents[0].id), engine.blocks.spill(x)])
                go.touch()

        dsk = {"x": (numbers, BIG), "slow": (slow, "x"), "quick": (len, "x")}
        dsk["end"] = (lambda x, slow, quick: (total(x), slow), "x", "slow", "quick")
        found = engine.get(dsk, "end", callbacks=(None, None, None, posttask, None))
        assert found == (SUM, SUM)
        assert moved == [False, 0]

    def test_a_workers_death(self, engine, tmp_path):
        dsk = {"x": (numbers, BIG), "y": (_die_once, "x", str(tmp_path / "dead")), "z": (total, "x", "y")}
        spilling = Spilling(engine, "x")
        assert engine.get(dsk, "z", callbacks=spilling.callbacks) == 2 * SUM
        assert spilling.moved == {"x": BYTES}

    def test_several_threads(self, engine):
        found = {}

        def compute(i):
            dsk = {("x", j): (np.full, BIG // 10, i) for j in range(10)}
            dsk |= {("y", j): (operator.iadd, ("x", j), 1) for j in range(10)}
            dsk["sum"] = (sum, [(np.sum, key) for key in list(dsk)])
            found[i] = engine.get(dsk, "sum", callbacks=Spilling(engine).callbacks)

        threads = [threading.Thread(target=compute, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert found == {i: BIG * (2 * i + 1) for i in range(4)}

    @pytest.mark.parametrize(
        "expression",
        [
            lambda x: (x + x.T).sum(axis=0),
            lambda x: (x.rechunk((40, 400)) * 2).rechunk((400, 40)) + 1,
            lambda x: da.concatenate([x[:, ::2], x[:, 1::2]], axis=1),
            lambda x: x.map_overlap(lambda block: block - block.mean(), depth=3),
            lambda x: da.stack([x, x[::-1]]).cumsum(axis=1),
        ],
        ids=["add", "rechunk", "slice", "overlap", "cumsum"],
    )
    def test_answers_with_everything_on_disk(self, engine, expression):
        x = da.arange(160_000, chunks=8_000).reshape((400, 400)).rechunk((100, 100))
        y = expression(x)
        spilling = Spilling(engine)
        found = y.compute(scheduler=lambda *a, **k: engine.get(*a, **k, callbacks=spilling.callbacks))
        assert np.array_equal(found, y.compute(scheduler=get_sync))
        assert spilling.moved


def _die_once(x, path):
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), 9)
    return x


class TestSettings:
    def test_no_folder_on_a_disk(self, monkeypatch):
        monkeypatch.setattr(choices, "default_folder", lambda: None)
        failed = []
        with Engine(1) as engine:

            def pretask(key, dsk, state):
                if key == "y":
                    with engine.access(), pytest.raises(SpillError, match=r"Engine\(spill_folder=") as caught:
                        engine.blocks.spill(state.cache["x"])
                    failed.append(caught)

            dsk = {"x": (numbers, BIG), "y": (total, "x")}
            assert engine.get(dsk, "y", callbacks=(None, None, pretask, None, None)) == SUM
        assert failed

    def test_a_full_disk_loses_nothing(self, tmp_path):
        failed = []
        with Engine(2, spill_folder=tmp_path, spill_limit=BYTES) as engine:
            spilling = Spilling(engine)

            def pretask(key, dsk, state):
                if key == "y":
                    with pytest.raises(SpillFull, match="spill_limit"):
                        spilling.spill(state)
                    failed.append(engine.blocks.on_disk)

            dsk = {"x": (numbers, BIG), "w": (numbers, BIG), "y": (total, "x", "w")}
            assert engine.get(dsk, "y", callbacks=(None, None, pretask, None, None)) == 2 * SUM
        assert failed == [BYTES]
        assert list(tmp_path.iterdir()) == []

    def test_bad_ones(self, tmp_path):
        with pytest.raises(ConfigError, match="spill_folder"):
            Engine(1, spill_folder=tmp_path / "missing")
        with pytest.raises(ValueError, match="spill_limit"):
            Engine(1, spill_limit=-1)


KILLED = """
import sys, time
import numpy as np
from graphmill.engine import Engine
from graphmill.memory.block import Encoded

engine = Engine(2, spill_folder={folder!r})

def pretask(key, dsk, state):
    if key == "y":
        with engine.access():
            assert engine.blocks.spill(state.cache["x"])
        print("going", flush=True)

dsk = {{"x": (np.ones, 200_000), "y": (lambda x: time.sleep(60), "x")}}
engine.get(dsk, "y", callbacks=(None, None, pretask, None, None))
"""


def test_a_killed_program_leaves_nothing_on_disk(program, tmp_path):  # noqa: F811 - a fixture
    process = program(KILLED.format(folder=str(tmp_path)))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == [str(process.pid)]
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    deadline = time.monotonic() + 20
    while (list(tmp_path.iterdir()) or left_of(process.pid)) and time.monotonic() < deadline:
        psutil.wait_procs(family, timeout=0.1)
    assert list(tmp_path.iterdir()) == []
    assert left_of(process.pid) == []
