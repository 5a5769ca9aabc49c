"""The engine as users meet it: right answers, isolation, memory given back."""

import gc
import operator
import os
import random
import shutil
import threading
import warnings
import weakref
from operator import add
from pathlib import Path

import numpy as np
import psutil
import pytest

import graphmill
from graphmill.engine import Engine
from graphmill.errors import ConfigError, EncodeError, EngineClosed, GraphError, MissingKeyError, WorkerDied
from graphmill.memory.commons import UNIT
from graphmill.workers import signals

BIG = 200_000  # elements of a float64 array that lies in shared memory for certain


def occupied(engine):
    return engine.blocks.occupied()


class TestAnswers:
    def test_nested_keys(self, engine):
        dsk = {"x": 1, "y": (add, "x", 2), "z": (add, "y", "y")}
        assert engine.get(dsk, "z") == 6
        assert engine.get(dsk, ["y", ["z", "x"]]) == (3, (6, 1))

    def test_functions_of_a_script_and_closures(self, engine):
        offset = 5

        def recursive(n):
            return offset if n == 0 else recursive(n - 1)

        assert engine.get({"x": (recursive, 3), "y": (lambda x: x * 2, "x")}, "y") == 10

    @pytest.mark.parametrize("function", [random.random, np.random.rand, np.random.mtrand._rand.rand])
    def test_random_numbers_differ_from_task_to_task(self, engine, function):
        keys = [("x", i) for i in range(20)]
        first, second = (engine.get(dict.fromkeys(keys, (function,)), keys) for _ in range(2))
        assert len({*first, *second}) == 40

    @pytest.mark.parametrize("make", [random.Random, np.random.RandomState])
    def test_sources_of_random_numbers_have_their_state(self, engine, make):
        expected = make(3).uniform(0, 1)
        assert engine.get({"x": (make(3).uniform, 0, 1)}, "x") == expected
        assert engine.get({"s": make(3), "x": (lambda s: s.uniform(0, 1), "s")}, "x") == expected

    def test_classes_that_cannot_be_imported(self, engine):
        class Point:
            def __init__(self, x):
                self.x = x

        made = engine.get({"p": (Point, 3), "q": (operator.attrgetter("x"), "p")}, ["p", "q"])
        assert made[0].x == 3
        assert made[1] == 3

    def test_aliases_and_tuples_of_inputs_are_not_copied(self, engine):
        dsk = {"x": (np.ones, BIG), "t": (lambda x: (x, x), "x"), "a": "x", "s": (_blocks_of, "t", "a")}
        tuple_of, array = engine.get(dsk, ["t", "a"])
        assert (tuple_of[0] == 1).all()
        assert np.shares_memory(tuple_of[0], tuple_of[1])
        assert (array == 1).all()

    def test_cache(self, engine):
        cache = {"x": 5}
        assert engine.get({"x": (_fail, 1), "y": (add, "x", 1)}, "y", cache=cache) == 6
        assert cache["y"] == 6

    def test_a_key_that_is_missing(self, engine):
        with pytest.raises(MissingKeyError, match="'why'"):
            engine.get({"y": (add, 1, 1)}, "why")

    def test_several_threads(self, engine):
        found = {}

        def compute(i):
            dsk = {("x", j): (np.full, BIG // 10, i) for j in range(20)}
            dsk["sum"] = (sum, [(np.sum, key) for key in list(dsk)])
            found[i] = engine.get(dsk, "sum")

        threads = [threading.Thread(target=compute, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {i: i * BIG // 10 * 20 for i in range(6)}


def _blocks_of(*args):
    return len(args)


def _fail(*args):
    raise AssertionError("must not run")


class TestIsolation:
    def test_in_place_changes_are_the_tasks_own(self, engine):
        dsk = {
            "x": (np.ones, BIG),
            "doubled": (operator.imul, "x", 2.0),
            "tripled": (operator.imul, "x", 3.0),
            "plain": (np.sum, "x"),
            "sums": (lambda a, b: (a.sum(), b.sum()), "doubled", "tripled"),
        }
        assert engine.get(dsk, ["plain", "sums"]) == (BIG, (2 * BIG, 3 * BIG))

    def test_a_buffer_that_a_function_uses_again(self, engine):
        dsk = {("x", i): (_same_buffer, i) for i in range(100)}
        found = engine.get(dsk, list(dsk))
        for i, array in enumerate(found):
            assert (array == np.arange(BIG // 10) + i).all()

    def test_an_input_that_a_task_keeps(self):
        dsk = {"x": (np.ones, BIG), "y": (_keep, "x")}
        for i in range(100):
            dsk["z", i] = (np.full, BIG, i)
            dsk["w", i] = (np.sum, ("z", i))
        with Engine(1, warm_limit=0) as engine:
            engine.get(dsk, ["y", *(("w", i) for i in range(100))])
            assert engine.get({"q": (_read_kept, 0)}, "q") == [float(BIG)]
            assert engine.blocks.live == 8 * BIG + -8 * BIG % UNIT

    def test_a_result_that_the_user_keeps(self, engine):
        kept = engine.get({"x": (np.full, BIG, 7.0)}, "x")
        for i in range(100):
            engine.get({"x": (np.full, BIG, float(i)), "y": (np.sum, "x")}, "y")
        assert (kept == 7).all()

    def test_results_are_writable_and_the_users_own(self, engine):
        dsk = {"x": (np.ones, BIG)}
        one, other = engine.get(dsk, ["x", "x"])
        again = engine.get(dsk, "x")
        assert one is other
        one += 1
        assert (again == 1).all()

    def test_small_values_are_not_shared_either(self, engine):
        dsk = {"x": (list, (1, 2)), "y": (_append, "x"), "z": (_append, "x")}
        assert engine.get(dsk, ["y", "z"]) == ([1, 2, 9], [1, 2, 9])

    def test_data_of_the_graph_is_not_changed(self, engine):
        data = np.ones(BIG)
        dsk = {"x": data, "y": (operator.imul, "x", 2.0), "z": (operator.imul, data, 3.0)}
        y, z = engine.get(dsk, ["y", "z"])
        assert (data == 1).all()
        assert (y == 2).all()
        assert (z == 3).all()


_buffer = np.empty(BIG // 10)
_kept = []


def _same_buffer(i):
    return np.add(np.arange(BIG // 10), i, out=_buffer)


def _keep(x):
    _kept.append(x)
    return 0


def _read_kept(_):
    return [float(each.sum()) for each in _kept]


def _append(values):
    values.append(9)
    return values


class TestMemory:
    def test_nothing_is_occupied_once_nobody_needs_it(self, engine):
        dsk = {("x", i): (np.full, BIG, i) for i in range(8)}
        dsk["sum"] = (sum, [(np.sum, key) for key in list(dsk)])
        assert engine.get(dsk, "sum") == sum(range(8)) * BIG
        gc.collect()
        assert engine.blocks.live == 0
        assert occupied(engine) == 0

    def test_memory_goes_at_the_moment_of_release(self, engine):
        # A chain: while it runs, what is occupied is seen from the callback.
        seen = []
        dsk = {("x", 0): (np.ones, BIG)}
        dsk |= {("x", i): (add, ("x", i - 1), 1) for i in range(1, 12)}
        dsk["y"] = (np.sum, ("x", 11))
        engine.get(dsk, "y", callbacks=(None, None, lambda *_: seen.append(occupied(engine)), None, None))
        assert max(seen) <= 3 * 8 * BIG + 10 * UNIT

    @pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory that can be looked at")
    def test_memory_goes_as_seen_from_outside(self, engine):
        def lies_there():
            segments = Path("/dev/shm").glob(f"graphmill-{os.getpid()}-*")
            return sum(segment.stat().st_blocks * 512 for segment in segments)

        seen = []
        before = lies_there()
        dsk = {("x", 0): (np.ones, BIG)}
        dsk |= {("x", i): (add, ("x", i - 1), 1) for i in range(1, 12)}
        dsk["y"] = (np.sum, ("x", 11))
        engine.get(
            dsk, "y", callbacks=(None, None, lambda *_: seen.append(lies_there() - before), None, None)
        )
        assert 8 * BIG <= max(seen) <= 3 * 8 * BIG + 10 * UNIT
        assert lies_there() == before

    def test_a_result_is_given_back_when_the_user_lets_go(self, engine):
        kept = engine.get({"x": (np.ones, BIG)}, "x")
        assert occupied(engine) >= kept.nbytes
        del kept
        assert occupied(engine) == 0

    def test_arrays_of_the_graph_enter_once(self, engine):
        data = np.ones(BIG)
        peak = []
        dsk = {("x", i): (np.sum, data) for i in range(20)}
        engine.get(
            dsk, list(dsk), callbacks=(None, None, lambda *_: peak.append(engine.blocks.live), None, None)
        )
        assert max(peak) <= data.nbytes + UNIT

    def test_many_blocks(self, engine):
        dsk = {("x", i): (np.full, 12_500, i) for i in range(3_000)}
        found = engine.get(dsk, list(dsk))
        assert [int(array[0]) for array in found] == list(range(3_000))
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            assert process.num_fds() < 200
            assert len(process.memory_maps(grouped=False)) < 3_000

    def test_none_is_a_key_like_others(self, engine):
        assert engine.get({None: (abs, -1), "y": (abs, -2)}, [None, "y"]) == (1, 2)

    def test_lists_of_keys_that_contain_themselves(self, engine):
        keys: list[object] = ["x"]
        keys.append(keys)
        with pytest.raises(GraphError, match="contains itself"):
            engine.get({"x": 1}, keys)


class TestTasksThatStay:
    def test_a_lock_of_threads(self, engine, caplog):
        lock = threading.Lock()
        dsk = {("x", i): (lambda lock, i: (lock.locked(), i), "l", i) for i in range(3)}
        found = engine.get({"l": lock, **dsk, "y": (abs, -4)}, [*dsk, "y"])
        assert found == ((False, 0), (False, 1), (False, 2), 4)
        assert sum("runs in this process" in record.message for record in caplog.records) == 1

    def test_a_result_that_cannot_be_sent(self, engine):
        with pytest.raises(EncodeError, match="lock") as caught:
            engine.get({"x": (lambda: threading.Lock(),)}, "x")  # noqa: PLW0108 - made in the worker
        assert "raised by the task 'x'" in caught.value.__notes__

    def test_targets_in_memory(self, engine):
        da = pytest.importorskip("dask.array")
        zarr = pytest.importorskip("zarr")
        x = da.from_array(np.arange(64.0).reshape(8, 8), chunks=3)
        expected = np.arange(64.0).reshape(8, 8) + 1
        array = np.zeros((8, 8))
        da.store(x + 1, array, scheduler=engine.get)
        assert (array == expected).all()
        da.store(x + 2, array, scheduler=engine.get, lock=threading.Lock())
        assert (array == expected + 1).all()
        group = zarr.create_array(zarr.storage.MemoryStore(), shape=(8, 8), chunks=(3, 3), dtype="f8")
        da.store(x + 1, group, scheduler=engine.get)
        assert (group[:] == expected).all()
        recorded = _Recording()
        da.store(x + 1, recorded, scheduler=engine.get)
        assert recorded.written == 9

    def test_a_memory_map(self, engine, tmp_path):
        da = pytest.importorskip("dask.array")
        x = da.from_array(np.arange(64.0).reshape(8, 8), chunks=3)
        target = np.memmap(tmp_path / "map", dtype="f8", mode="w+", shape=(8, 8))
        da.store(x + 1, target, scheduler=engine.get)
        assert (np.fromfile(tmp_path / "map") == np.arange(64.0) + 1).all()

    def test_what_was_stored_and_is_returned(self, engine):
        da = pytest.importorskip("dask.array")
        x = da.from_array(np.arange(16.0).reshape(4, 4), chunks=2)
        target = np.zeros((4, 4))
        stored = da.store(x + 1, target, compute=False, return_stored=True, load_stored=True)
        assert (stored.compute(scheduler=engine.get) == np.arange(16.0).reshape(4, 4) + 1).all()


class _Recording:
    shape, dtype, written = (8, 8), np.dtype("f8"), 0

    def __setitem__(self, index, value):
        self.written += 1


class _TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


def _raise(_):
    raise _TwoArguments("once", 2)


class TestFailures:
    def test_an_exception_keeps_type_message_frames_and_key(self, engine):
        with pytest.raises(_TwoArguments, match="once") as caught:
            engine.get({"x": (_raise, 1)}, "x")
        assert caught.value.second == 2
        assert "raised by the task 'x'" in caught.value.__notes__
        assert "_raise" in [entry.name for entry in caught.traceback]

    def test_the_source_of_a_function_that_went_by_value(self, engine):
        def outer():
            def inner():
                raise LookupError("there")

            inner()

        with pytest.raises(LookupError) as caught:
            engine.get({"x": (outer,)}, "x")
        for name in ("outer", "inner"):
            (entry,) = [each for each in caught.traceback if each.name == name]
            assert str(entry.path) == __file__
        assert 'raise LookupError("there")' in str(caught.traceback[-1].statement)

    def test_an_exception_of_numpy(self, engine):
        for _ in range(5):
            with pytest.raises(ValueError, match="broadcast"):
                engine.get({"x": (add, (np.ones, BIG), (np.ones, 7))}, "x")

    def test_a_worker_that_dies_costs_no_finished_result(self, engine, tmp_path):
        marker = tmp_path / "died"
        counts = tmp_path / "counts"
        counts.mkdir()
        # Of a kind of their own: one that is known to take less is run again if it takes more.
        filled = {("filled", i): (_count_and_fill, str(counts), i) for i in range(6)}
        dsk = filled | {"killer": (_die_once, str(marker), list(filled))}
        assert engine.get(dsk, "killer") == sum(range(6)) * BIG
        assert len(list(counts.iterdir())) == 6, "each task ran once"

    def test_a_task_that_kills_its_workers(self, engine):
        with pytest.raises(WorkerDied, match=r"'x'.*signal 9"):
            engine.get({"x": (_kill, 9), "y": (abs, "x")}, "y")
        assert engine.get({"x": (abs, -1)}, "x") == 1

    def test_a_failure_leaves_nothing_running(self, engine):
        dsk = {("x", i): (np.full, BIG, i) for i in range(50)}
        dsk["bad"] = (_raise, 1)
        with pytest.raises(_TwoArguments):
            engine.get(dsk, list(dsk))
        gc.collect()
        engine.get({"x": (add, 1, 1)}, "x")
        assert engine.blocks.live == 0

    @pytest.mark.parametrize("how", ["return", "exit", "raise"])
    def test_a_task_that_forks(self, engine, how):
        assert engine.get({"x": (_fork, how)}, "x") == "parent"
        dsk = {("x", i): (abs, -i) for i in range(200)}
        assert engine.get(dsk, list(dsk)) == tuple(range(200))

    def test_rerun_locally(self, engine):
        with pytest.raises(_TwoArguments) as caught:
            engine.get({"x": (_raise, 1)}, "x", rerun_exceptions_locally=True)
        assert "raised by the task 'x', run again in this process" in caught.value.__notes__

    def test_warnings_are_seen_once(self, engine):
        dsk = {("x", i): (_warn, i) for i in range(10)}
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.get(dsk, list(dsk))
        assert [str(each.message) for each in seen] == ["beware"]


def _fork(how):
    child = os.fork()
    if child == 0:
        if how == "exit":
            raise SystemExit(0)
        if how == "raise":
            raise ValueError(how)
        return "child"
    os.waitpid(child, 0)
    return "parent"


def _kill(signal):
    os.kill(os.getpid(), signal)


def _die_once(marker, arrays):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), 9)
    return sum(int(array.sum()) for array in arrays)


class _Ends:
    """Notes which workers have run tasks."""

    def __init__(self):
        self.workers = set()

    def __call__(self, key, value, dsk, state, worker):
        self.workers.add(worker)


def _count_and_fill(folder, i):
    Path(folder, f"{os.getpid()}-{i}").touch()
    return np.full(BIG, i)


def _warn(x):
    warnings.warn("beware", UserWarning, stacklevel=1)
    return x


class TestDask:
    da = pytest.importorskip("dask.array")

    def test_arrays(self, engine):
        x = self.da.from_array(np.arange(400.0).reshape(20, 20), chunks=6)
        for expression in (
            x + x.T,
            (x - x.mean(0)).std(),
            x.T @ x,
            self.da.linalg.svd(x.rechunk((6, 20)))[1],
        ):
            expected = expression.compute(scheduler="sync")
            assert np.allclose(expression.compute(scheduler=engine.get), expected)

    def test_blocks_changed_in_place_and_read_by_others(self, engine):
        m = self.da.from_array(np.arange(1e6).reshape(1000, 1000), chunks=250)
        for each in (m, (m + 0).persist(scheduler=engine.get)):
            doubled = each.map_blocks(lambda b: b.__imul__(2), dtype=m.dtype)
            total = (doubled.sum() + each.sum()).compute(scheduler=engine.get)
            assert total == 3 * np.arange(1e6).sum()

    def test_the_last_step_makes_an_ordinary_array(self, engine):
        found = self.da.ones((1_000, 1_000), chunks=500).compute(scheduler=engine.get)
        assert found.flags.owndata
        assert found.flags.writeable

    def test_compute_inside_a_task(self, engine):
        def inner():
            return float(self.da.ones(100, chunks=10).sum().compute())

        def explicit():
            return float(self.da.ones(100, chunks=10).sum().compute(scheduler=graphmill.get))

        assert engine.get({"x": (inner,), "y": (explicit,)}, ["x", "y"]) == (100, 100)

    def test_tasks_see_settings(self, engine):
        import dask

        get = dask.delayed(dask.config.get)
        with dask.config.set({"x": 1, "scheduler": engine.get}):
            assert get("x", "unset").compute() == 1
            assert get("scheduler").compute() == "synchronous"
        assert get("x", "unset").compute(scheduler=engine.get) == "unset"

    def test_progress_and_profiles(self, engine, capsys):
        from dask.diagnostics import Profiler, ProgressBar

        x = self.da.ones((40, 40), chunks=10)
        with ProgressBar(), Profiler() as profiler:
            x.sum().compute(scheduler=engine.get)
        assert len(profiler.results) >= 16
        assert "100%" in capsys.readouterr().out

    def test_values_shown_to_callbacks_die_where_ctrl_c_waits(self, engine):
        """Raised in the callback of a weak reference, it would be printed and lost."""
        held = []

        def posttask(key, value, *_):
            if key != "sum":
                weakref.finalize(value, lambda: held.append(signals._in_place is not None))

        dsk = {("x", i): (np.full, BIG, i) for i in range(20)}
        dsk["sum"] = (sum, [(np.max, key) for key in dsk])
        engine.get(dsk, "sum", callbacks=(None, None, None, posttask, None))
        assert held == [True] * 20

    @pytest.mark.parametrize("derived", [False, True])
    def test_locks_lock_across_workers(self, engine, tmp_path, derived, caplog):
        from dask.utils import SerializableLock

        class Derived(SerializableLock):
            def free(self):
                return not self.locked()

        lock = Derived("a token") if derived else SerializableLock()
        path = tmp_path / "count"
        path.write_text("0")
        dsk = {("x", i): (_count_under, lock, str(path)) for i in range(200)}
        engine.get(dsk, list(dsk))
        assert path.read_text() == "200"
        assert "runs in this process" not in caplog.text
        if derived:
            assert engine.get({"x": (Derived.free, lock)}, "x") is True

    def test_a_lock_that_is_held_keeps_tasks_from_running(self, engine, caplog):
        from dask.utils import SerializableLock

        lock = SerializableLock()
        lock.acquire()

        def let_go(record):
            if "is held" in record.message:
                held.append(lock.locked())
                lock.release()
            return True

        held = []
        with caplog.filtering(let_go):
            assert engine.get({"x": (_pid_under, lock)}, "x") == os.getpid()
        assert held == [True]
        assert engine.get({"x": (_pid_under, lock)}, "x") != os.getpid()


def _pid_under(lock):
    with lock:
        return os.getpid()


def _count_under(lock, path):
    with lock:
        count = int(Path(path).read_text())
        Path(path).write_text(str(count + 1))


class TestLife:
    def test_close_may_be_called_twice(self):
        engine = Engine(1)
        assert engine.get({"x": (abs, -1)}, "x") == 1
        engine.close()
        engine.close()
        with pytest.raises(EngineClosed):
            engine.get({"x": (abs, -1)}, "x")

    def test_closing_before_use(self):
        Engine(1).close()

    def test_results_outlive_the_engine(self):
        with Engine(1) as engine:
            kept = engine.get({"x": (np.full, BIG, 3.0)}, "x")
        assert (kept == 3).all()

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"num_workers": 0}, ValueError),
            ({"num_workers": "two"}, TypeError),
            ({"warm_limit": -1}, ValueError),
        ],
    )
    def test_nonsense(self, engine, arguments, error):
        with pytest.raises(error, match=next(iter(arguments))):
            Engine(**arguments)
        if "num_workers" in arguments:
            with pytest.raises(error, match="num_workers"):
                engine.get({"x": (abs, -1)}, "x", **arguments)

    def test_a_folder_that_is_none(self, tmp_path, monkeypatch):
        with pytest.raises(ConfigError, match="does not exist: make it first"):
            Engine(1, folder=tmp_path / "none")
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="is not a folder"):
            Engine(1, folder=tmp_path / "file")
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(ConfigError, match="No files can be made"):
            Engine(1, folder=tmp_path)

    def test_a_folder_seen_from_the_working_directory(self, tmp_path, monkeypatch):
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path)
        with Engine(1, folder="inner") as engine:
            assert engine.get({"x": (abs, -1)}, "x") == 1
            assert len(list((tmp_path / "inner").iterdir())) == 1

    def test_an_engine_whose_folder_is_gone(self, tmp_path):
        with Engine(1, folder=tmp_path) as engine:
            assert engine.get({"x": (abs, -1)}, "x") == 1
            shutil.rmtree(next(tmp_path.iterdir()))
            with pytest.raises(EngineClosed, match="folder"):
                engine.get({"x": (abs, -1)}, "x")

    def test_fewer_workers_for_one_run(self, engine):
        dsk = {("x", i): (abs, i) for i in range(500)}
        for limit in (2, 1):  # the first run shows that these tasks are quick: several are at hand then
            ends = _Ends()
            engine.get(dsk, list(dsk), num_workers=limit, callbacks=(None, None, None, ends, None))
            assert len(ends.workers) == limit
