"""The executor, as the standard library's process pool is known, and what it adds to that."""

import asyncio
import concurrent.futures
import gc
import itertools
import os
import threading
import time
import weakref
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from functools import partial

import numpy as np
import pytest

import graphmill
from graphmill.errors import EngineClosed
from tests.engine.conftest import limit_beyond

SIZE = 1_000_000
#: Seconds until something that is bound to happen must have happened.
LIMIT = 60


@pytest.fixture
def executor(engine):
    with graphmill.Executor(engine=engine) as made:
        yield made
    gc.collect()
    assert engine.memory().live == 0


@pytest.fixture
def gate(tmp_path):
    """Calls that run until the gate is opened."""
    return Gate(tmp_path / "open")


class Gate:
    def __init__(self, path):
        self.path = path

    def open(self):
        self.path.touch()

    def wait(self, value=None):
        deadline = time.monotonic() + LIMIT
        while not self.path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return value


def fail(*args):
    raise ValueError("no", *args)


def divide_by(number):
    return 1 // number


def fill(array, value):
    array[:] = value
    return array.sum()


def until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- as the standard library's tests of executors have it


def test_submit(executor):
    assert executor.submit(pow, 2, 8).result() == 256


def test_submit_takes_any_keyword(executor):
    future = executor.submit(lambda *args, **kwargs: (args, kwargs), 1, self=2, function=3, fn=4)
    assert future.result() == ((1,), {"self": 2, "function": 3, "fn": 4})


def test_submit_needs_a_function(executor):
    with pytest.raises(TypeError):
        executor.submit()
    with pytest.raises(TypeError):
        executor.submit(function=pow)


def test_map(executor):
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(pow, range(10), range(10), chunksize=3)) == [n**n for n in range(10)]
    assert list(executor.map(pow, range(2), itertools.count())) == [1, 1]
    assert list(executor.map(abs, [])) == []


def test_map_raises_in_its_place(executor):
    results = executor.map(divide_by, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_times_out(executor, gate):
    results = executor.map(gate.wait, [1], timeout=0)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_map_looks_only_as_far_ahead_as_it_may(executor):
    taken = []
    items = (taken.append(n) or n for n in range(100))
    results = executor.map(abs, items, buffersize=3, chunksize=2)
    assert len(taken) == 6
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    assert len(taken) <= 12
    assert list(results) == list(range(4, 100))


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_map_refuses_strange_numbers(executor, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        executor.map(abs, [1], **{name: 0})


def test_exceptions_that_count_as_false_are_told(executor):
    class Falsy(Exception):
        def __bool__(self):
            return False

        def __len__(self):
            return 0

    error = executor.submit(raise_it, Falsy("msg")).exception()
    assert (type(error).__name__, error.args) == ("Falsy", ("msg",))


def raise_it(error):
    raise error


def test_exceptions_come_with_the_frames_of_the_worker(executor):
    error = executor.submit(fail, 1).exception()
    assert type(error) is ValueError
    assert error.args == ("no", 1)
    names = []
    frame = error.__traceback__
    while frame:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    assert names[-1] == "fail"


def test_nothing_refers_to_calls_that_are_done(executor):
    class Thing:
        def method(self, _):
            return 1

    thing = Thing()
    gone = weakref.ref(thing)
    future = executor.submit(thing.method, Thing())
    assert future.result() == 1
    del thing
    until(lambda: gone() is None)


def test_map_lets_go_of_results_that_were_given(executor):
    results = executor.map(np.zeros, [SIZE] * 4)
    for array in results:
        gone = weakref.ref(array)
        del array
        assert gone() is None


@pytest.mark.parametrize("number", [0, -1])
def test_num_workers_must_be_positive(number):
    with pytest.raises(ValueError, match="at least 1"):
        graphmill.Executor(number)


def test_as_completed(executor, gate):
    slow, quick = executor.submit(gate.wait, 1), executor.submit(pow, 2, 2)
    done = concurrent.futures.as_completed([slow, quick, quick])
    assert next(done) is quick
    gate.open()
    assert list(done) == [slow]


def test_as_completed_times_out(executor, gate):
    slow = executor.submit(gate.wait)
    with pytest.raises(TimeoutError):
        next(concurrent.futures.as_completed([slow], timeout=0))
    gate.open()


def test_wait_for_the_first(executor, gate):
    slow, quick = executor.submit(gate.wait), executor.submit(abs, -1)
    done, left = concurrent.futures.wait([slow, quick], return_when=FIRST_COMPLETED)
    assert (done, left) == ({quick}, {slow})
    gate.open()


def test_wait_for_the_first_exception(executor, gate):
    futures = [executor.submit(abs, -1), executor.submit(fail), executor.submit(gate.wait)]
    done, left = concurrent.futures.wait(futures, return_when=FIRST_EXCEPTION)
    gate.open()
    assert futures[1] in done
    assert futures[2] in left


def test_wait_for_all(executor):
    futures = [executor.submit(abs, -1), executor.submit(fail)]
    done, left = concurrent.futures.wait(futures, return_when=ALL_COMPLETED)
    assert (done, left) == (set(futures), set())


def test_wait_times_out(executor, gate):
    slow = executor.submit(gate.wait)
    _, left = concurrent.futures.wait([slow], timeout=0.01)
    assert left == {slow}
    gate.open()


def test_callbacks_may_ask_for_more(executor):
    found = []
    ready = threading.Event()

    def go_on(future):
        found.append(future.result())
        more = executor.submit(pow, future.result(), 2)
        more.add_done_callback(lambda last: (found.append(last.result()), ready.set()))

    executor.submit(pow, 2, 2).add_done_callback(go_on)
    assert ready.wait(LIMIT)
    assert found == [4, 16]


# ---- cancellation, and the end


def test_what_has_not_begun_can_be_cancelled(executor, gate):
    running = [executor.submit(gate.wait, n) for n in range(2)]
    waiting = executor.submit(pow, 2, 2)
    until(lambda: all(each.running() for each in running))
    assert waiting.cancel()
    assert waiting.cancelled()
    assert not running[0].cancel()
    gate.open()
    assert [each.result() for each in running] == [0, 1]
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    done, _ = concurrent.futures.wait([waiting], timeout=LIMIT)
    assert done == {waiting}


def test_results_that_nobody_takes_from_map_are_cancelled(executor, gate):
    results = executor.map(gate.wait, range(20))
    results = iter(results)
    gate.open()
    assert next(results) == 0
    results.close()


def test_no_calls_after_shutdown(engine):
    executor = graphmill.Executor(engine=engine)
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(pow, 2, 2)
    with graphmill.Executor(engine=engine) as another:
        assert another.submit(pow, 2, 2).result() == 4


def test_shutdown_waits(engine, gate):
    executor = graphmill.Executor(engine=engine)
    future = executor.submit(gate.wait, 5)
    executor.shutdown(wait=False)
    assert not future.done()
    gate.open()
    executor.shutdown(wait=True)
    assert future.done()
    assert future.result() == 5


def test_shutdown_can_cancel(engine, gate):
    executor = graphmill.Executor(engine=engine)
    futures = [executor.submit(gate.wait, n) for n in range(10)]
    until(lambda: sum(each.running() for each in futures) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    executor.shutdown()
    assert [each.cancelled() for each in futures] == [False] * 2 + [True] * 8
    assert [each.result() for each in futures[:2]] == [0, 1]


def test_results_outlive_the_executor():
    with graphmill.Executor(1) as executor:
        large, small = executor.submit(np.arange, SIZE), executor.submit(pow, 2, 2)
        read = executor.submit(np.ones, SIZE).result()
    assert executor.engine.closed
    assert small.result() == 4
    np.testing.assert_array_equal(large.result(), np.arange(SIZE))
    assert read.sum() == SIZE
    read[:] = 3


def test_an_executor_that_is_dropped_runs_what_it_was_given(gate):
    executor = graphmill.Executor(1)
    engine = executor.engine
    futures = [executor.submit(gate.wait, 1), executor.submit(np.ones, SIZE)]
    del executor
    gate.open()
    assert futures[0].result(LIMIT) == 1
    assert futures[1].result(LIMIT).sum() == SIZE
    until(lambda: engine.closed)


def test_closing_the_engine_ends_calls(gate):
    engine = graphmill.Engine(1)
    executor = graphmill.Executor(engine=engine)
    futures = [executor.submit(gate.wait), executor.submit(abs, 1)]
    until(futures[0].running)
    engine.close()
    for future in futures:
        assert isinstance(future.exception(LIMIT), EngineClosed)
    executor.shutdown()


def test_the_interpreter_waits_for_calls(script):
    out = script(
        "import graphmill, time\n"
        "executor = graphmill.Executor(1)\n"
        "future = executor.submit(time.sleep, 0.5)\n"
        "future.add_done_callback(lambda done: print('done', done.result()))\n"
    )
    assert out == "done None\n"


def test_scripts_need_no_guard_and_no_shutdown(script):
    out = script(
        "import graphmill, numpy as np\n"
        "executor = graphmill.Executor(2)\n"
        "def f(n):\n    return np.full(100_000, n)\n"
        "print(sum(int(each[0]) for each in executor.map(f, range(10))))\n"
        "kept = executor.submit(f, 3)\n",
        stdin=True,
    )
    assert out == "45\n"


def test_ctrl_c_ends_a_with_block(script):
    out = script(
        "import graphmill, os, signal, threading, time\n"
        "try:\n"
        "    with graphmill.Executor(2) as executor:\n"
        "        futures = [executor.submit(time.sleep, 600) for _ in range(4)]\n"
        "        while not futures[1].running(): time.sleep(0.01)\n"
        "        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "        futures[0].result()\n"
        "except KeyboardInterrupt:\n"
        "    print([type(f.exception() if not f.cancelled() else None).__name__ for f in futures])\n"
    )
    assert out == "['CancelledError', 'CancelledError', 'NoneType', 'NoneType']\n"


def test_ctrl_c_ends_a_wait_and_the_executor_goes_on(script):
    out = script(
        "import graphmill, os, signal, threading, time\n"
        "with graphmill.Executor(2) as executor:\n"
        "    future = executor.submit(time.sleep, 1)\n"
        "    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "    try:\n"
        "        future.result()\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', executor.submit(pow, 2, 3).result(), future.result())\n"
    )
    assert out == "interrupted 8 None\n"


def test_a_forked_process_cannot_use_it(executor):
    executor.submit(abs, 1).result()
    stored = executor.submit(np.ones, SIZE)
    concurrent.futures.wait([stored])
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with pytest.raises(EngineClosed):
                executor.submit(abs, 1)
            with pytest.raises(EngineClosed):
                stored.result()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert executor.submit(abs, -1).result() == 1


# ---- set-up of workers


def _note(folder, text):
    (folder / f"{os.getpid()}").write_text(text)


def test_initializers_run_once_in_each_worker(tmp_path):
    with graphmill.Executor(2, initializer=_note, initargs=(tmp_path, "ready")) as executor:
        pids = set(executor.map(lambda _: (os.getpid(), time.sleep(0.01))[0], range(20)))
    assert {path.name for path in tmp_path.iterdir()} == {str(pid) for pid in pids}


def test_a_failing_initializer_breaks_the_executor(engine):
    executor = graphmill.Executor(engine=engine, initializer=fail)
    error = executor.submit(pow, 2, 2).exception()
    assert "The initializer of workers raised ValueError" in str(error)
    with pytest.raises(concurrent.futures.BrokenExecutor, match="initializer"):
        executor.submit(pow, 2, 2)
    executor.shutdown()


def test_initializers_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        graphmill.Executor(initializer=3)


def test_an_engine_comes_with_its_settings(engine):
    with pytest.raises(TypeError, match="num_workers, memory_limit"):
        graphmill.Executor(2, memory_limit="1GB", engine=engine)


# ---- what it adds: shared memory


def test_a_future_goes_to_many_calls_without_a_copy(executor, engine):
    before = engine.memory()
    array = executor.submit(np.ones, 12_500_000)
    sums = [executor.submit(np.sum, array) for _ in range(10)]
    assert [each.result() for each in sums] == [12_500_000] * 10
    after = engine.memory()
    assert after.copied == before.copied
    assert after.passed_on - before.passed_on == 10 * 100_000_000
    assert 100_000_000 <= after.live < 101_000_000
    assert after.peak_live - before.peak_live < 101_000_000


def test_results_are_recognised_when_passed_on(executor, engine):
    array = executor.submit(np.ones, SIZE).result()
    before = engine.memory()
    assert executor.submit(np.sum, array).result() == SIZE
    assert executor.submit(np.sum, array[SIZE // 2 :]).result() == SIZE // 2
    assert executor.submit(lambda pair: pair["a"].sum(), {"a": array, "b": 1}).result() == SIZE
    assert engine.memory().copied == before.copied


def test_what_was_changed_is_copied(executor, engine):
    future = executor.submit(np.ones, SIZE)
    array = future.result()
    array[0] = 10
    before = engine.memory().copied
    assert executor.submit(np.sum, array).result() == SIZE + 9
    assert engine.memory().copied - before == array.nbytes
    # The future is what the call gave.
    assert executor.submit(np.sum, future).result() == SIZE
    assert future.result() is array


def test_arguments_are_copied_on_write(executor):
    array = executor.submit(np.ones, SIZE)
    assert executor.submit(fill, array, 7).result() == 7 * SIZE
    assert executor.submit(np.sum, array).result() == SIZE
    assert array.result()[0] == 1


def test_own_arrays_are_as_they_were_when_the_call_began(executor):
    array = np.ones(SIZE)
    assert executor.submit(np.sum, array).result() == SIZE
    array[:] = 2
    assert executor.submit(np.sum, array).result() == 2 * SIZE


def test_futures_anywhere_in_arguments_are_waited_for(executor, gate):
    slow = executor.submit(gate.wait, 3)
    large = executor.submit(np.ones, SIZE)
    total = executor.submit(
        lambda pair, *, more: pair[0] + pair[1].sum() + more["x"][0], (slow, large), more={"x": [slow]}
    )
    assert not total.running()
    gate.open()
    assert total.result() == SIZE + 6


def test_waiting_calls_keep_no_worker(executor, gate):
    slow = executor.submit(gate.wait, 1)
    waiting = [executor.submit(abs, slow) for _ in range(5)]
    assert executor.submit(abs, -2).result() == 2
    gate.open()
    assert [each.result() for each in waiting] == [1] * 5


def test_the_failure_of_an_argument_is_that_of_the_call(executor, gate):
    failed = executor.submit(fail)
    with pytest.raises(ValueError, match="no"):
        executor.submit(abs, failed).result()
    blocked = [executor.submit(gate.wait) for _ in range(2)]
    cancelled = executor.submit(abs, 1)
    user = executor.submit(abs, cancelled)
    assert cancelled.cancel()
    gate.open()
    with pytest.raises(concurrent.futures.CancelledError):
        user.result()
    concurrent.futures.wait(blocked)


def test_memory_goes_with_the_last_holder(executor, engine):
    future = executor.submit(np.ones, SIZE)
    array = future.result()
    del future
    assert engine.memory().live >= array.nbytes
    del array
    assert engine.memory().live == 0


def test_results_move_to_disk_when_memory_is_short():
    limit = limit_beyond(300 << 20, workers=1)
    with graphmill.Executor(1, memory_limit=limit) as executor:
        futures = [executor.submit(np.full, 5_000_000, n, float) for n in range(15)]
        concurrent.futures.wait(futures)
        used = executor.engine.memory()
        assert used.on_disk > 0
        assert used.peak <= limit
        for n, future in enumerate(futures):
            assert executor.submit(np.sum, future).result() == n * 5_000_000
        assert executor.submit(lambda a: float(a[0]), futures[7]).result() == 7
        assert futures[11].result()[0] == 11


def test_a_call_that_cannot_fit_says_so():
    with graphmill.Executor(1, memory_limit=limit_beyond(200 << 20, workers=1)) as executor:
        with pytest.raises(graphmill.errors.MemoryLimitError, match=r"needs .* MB or more"):
            executor.submit(np.ones, 100_000_000).result()
        assert executor.submit(abs, -1).result() == 1


def test_futures_of_another_engine_go_by_value(executor):
    with graphmill.Executor(1) as other:
        future = other.submit(np.ones, SIZE)
        assert executor.submit(np.sum, future).result() == SIZE


def test_a_future_does_not_pickle_elsewhere(executor):
    import pickle

    with pytest.raises(TypeError, match="pass its result"):
        pickle.dumps(executor.submit(abs, 1))


# ---- sharing an engine


def test_executors_and_graphs_share_an_engine(engine):
    da = pytest.importorskip("dask.array")
    with graphmill.Executor(engine=engine) as one, graphmill.Executor(engine=engine) as two:
        x = da.ones((2000, 2000), chunks=500)
        futures = [executor.submit(np.sum, np.ones(n)) for n in range(50) for executor in (one, two)]
        assert float((x + x.T).sum().compute(scheduler=engine.get)) == 8e6
        assert [each.result() for each in futures] == [n for n in range(50) for _ in range(2)]


def test_within_a_worker_calls_run_at_once(executor):
    def nested():
        with graphmill.Executor(2) as inner:
            future = inner.submit(os.getpid)
            failed = inner.submit(fail)
            return (
                future.result() == os.getpid(),
                type(failed.exception()).__name__,
                list(inner.map(abs, [-1])),
            )

    assert executor.submit(nested).result() == (True, "ValueError", [1])


def test_asyncio(executor):
    async def main():
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(
            *[loop.run_in_executor(executor, partial(np.full, SIZE, n)) for n in range(4)]
        )
        return [int(each[0]) for each in results]

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_objects_of_a_manager_are_reached_from_workers(script):
    out = script(
        "import graphmill, multiprocessing\n"
        "def put_twice(queue, item):\n    queue.put(item)\n    queue.put(item)\n"
        "with multiprocessing.Manager() as manager, graphmill.Executor(1) as executor:\n"
        "    queue, shared = manager.Queue(), manager.dict()\n"
        "    executor.submit(put_twice, queue, 3).result()\n"
        "    executor.submit(shared.update, {'x': 4}).result()\n"
        "    print(queue.get(timeout=60), queue.get(timeout=60), dict(shared))\n"
    )
    assert out == "3 3 {'x': 4}\n"


def test_many_threads_submit_at_once(executor):
    found = [[] for _ in range(8)]

    def work(mine):
        mine.extend(executor.submit(pow, n, 2).result() for n in range(25))

    threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert found == [[n**2 for n in range(25)]] * 8
