"""Storing to objects of the calling process."""

import gc
import threading

import dask.array as da
import numpy as np
import pytest

from graphmill import Engine

SOURCE = np.arange(400_000.0)


class Target:
    """Notes who writes to it, and refuses to if asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.shape = SOURCE.shape
        self.dtype = SOURCE.dtype
        self.data = np.zeros(self.shape)
        self.error = error
        self.threads: set[threading.Thread] = set()

    def __setitem__(self, index, value):
        self.threads.add(threading.current_thread())
        if self.error is not None:
            raise self.error
        self.data[index] = value

    def __getitem__(self, index):
        return self.data[index]


@pytest.fixture(scope="module")
def engine():
    with Engine(num_workers=2) as made:
        yield made


def held(engine):
    """Bytes that an engine holds though no graph runs."""
    gc.collect()
    engine.look_after(())
    return engine.blocks.live


def source():
    return da.from_array(SOURCE, chunks=100_000) + 1


def test_what_tasks_write_arrives_by_the_thread_that_computes(engine):
    target = Target()
    da.store(source(), target, scheduler=engine.get)
    assert np.array_equal(target.data, SOURCE + 1)
    assert target.threads == {threading.current_thread()}
    assert held(engine) == 0


def test_what_a_target_raises_is_raised_and_the_engine_goes_on(engine):
    with pytest.raises(ZeroDivisionError, match="full"):
        da.store(source(), Target(ZeroDivisionError("full")), scheduler=engine.get)
    target = Target()
    da.store(source(), target, scheduler=engine.get)
    assert np.array_equal(target.data, SOURCE + 1)
    assert held(engine) == 0


class CountingLock:
    """Has no more than Dask asks of a lock, and does not travel."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.taken = 0

    def acquire(self):
        self.taken += 1
        return self.lock.acquire()

    def release(self):
        self.lock.release()


class Guarded(Target):
    """Notes whether a lock is held while it is written to."""

    def __init__(self, lock: CountingLock, error: Exception | None = None) -> None:
        super().__init__(error)
        self.lock = lock
        self.held: list[bool] = []

    def __setitem__(self, index, value):
        self.held.append(self.lock.lock.locked())
        super().__setitem__(index, value)


def test_a_target_is_written_to_under_its_lock(engine):
    lock = CountingLock()
    target = Guarded(lock)
    da.store(source(), target, lock=lock, scheduler=engine.get)
    assert np.array_equal(target.data, SOURCE + 1)
    assert target.held == [True] * 4
    assert lock.taken == 4
    assert not lock.lock.locked()


def test_a_lock_is_let_go_of_when_its_target_raises(engine):
    lock = CountingLock()
    with pytest.raises(ZeroDivisionError, match="full"):
        da.store(source(), Guarded(lock, ZeroDivisionError("full")), lock=lock, scheduler=engine.get)
    assert not lock.lock.locked()


def test_a_lock_that_also_guards_a_file_is_taken_for_that_too(engine, tmp_path):
    lock = CountingLock()
    target = Guarded(lock)
    file = np.memmap(tmp_path / "file", np.float64, "w+", shape=SOURCE.shape)
    da.store([source(), source() + 1], [target, file], lock=lock, scheduler=engine.get)
    assert np.array_equal(target.data, SOURCE + 1)
    assert np.array_equal(file, SOURCE + 2)
    assert lock.taken == 8


def test_a_store_that_reads_leaves_nothing_for_the_next_to_write(engine):
    target = Target()
    stored = da.store(source(), target, return_stored=True, compute=False)
    assert np.array_equal(stored.compute(scheduler=engine.get), SOURCE + 1)
    other = Target()
    da.store(source() + 1, other, scheduler=engine.get)
    assert np.array_equal(target.data, SOURCE + 1)
    assert np.array_equal(other.data, SOURCE + 2)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i2"])
@pytest.mark.parametrize("lock", [False, True, threading.Lock()])
def test_what_was_stored_is_loaded_without_computing_it_again(engine, tmp_path, caplog, dtype, lock):
    def count(block):
        with (tmp_path / "calls").open("a") as file:
            file.write("!")
        return block % 1000 + 0.25

    target = np.zeros(SOURCE.shape, dtype)
    counted = da.from_array(SOURCE, chunks=100_000).map_blocks(count, meta=np.empty(0))
    stored = da.store(counted, target, return_stored=True, compute=False, lock=lock)
    expected = (SOURCE % 1000 + 0.25).astype(dtype)
    assert np.array_equal(stored.compute(scheduler=engine.get), expected)
    assert np.array_equal(target, expected)
    assert (tmp_path / "calls").read_text() == "!" * 4
    assert "runs in this process" not in caplog.text
    assert held(engine) == 0


def test_what_only_its_owner_can_read_is_computed_where_that_is(engine, tmp_path):
    def count(block):
        with (tmp_path / "calls").open("a") as file:
            file.write("!")
        return block + 1

    target = Target()
    counted = da.from_array(SOURCE, chunks=100_000).map_blocks(count, meta=np.empty(0))
    stored = da.store(counted, target, return_stored=True, compute=False)
    assert np.array_equal((stored + 1).compute(scheduler=engine.get), SOURCE + 2)
    assert np.array_equal(target.data, SOURCE + 1)
    assert (tmp_path / "calls").read_text() == "!" * 4


@pytest.mark.parametrize("lock", [True, threading.Lock()])
def test_what_was_stored_before_is_loaded(engine, lock):
    target = np.zeros(SOURCE.shape)
    stored = da.store(source(), target, return_stored=True, lock=lock, scheduler=engine.get)
    target *= 2
    assert np.array_equal((stored + 1).compute(scheduler=engine.get), 2 * (SOURCE + 1) + 1)


def test_runs_in_two_threads_write_each_in_its_own(engine):
    targets = [Target(), Target(ZeroDivisionError("full")), Target()]
    errors: list[BaseException] = []

    def run(target):
        try:
            da.store(source(), target, scheduler=engine.get)
        except ZeroDivisionError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=[target]) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [target.threads for target in targets] == [{thread} for thread in threads]
    assert len(errors) == 1
    for target in (targets[0], targets[2]):
        assert np.array_equal(target.data, SOURCE + 1)


def fail(part):
    raise ZeroDivisionError(len(part))


def test_a_task_that_fails_does_not_keep_its_inputs(engine):
    with pytest.raises(ZeroDivisionError):
        engine.get({"x": (np.zeros, 400_000), "y": (fail, "x")}, "y")
    assert held(engine) == 0
