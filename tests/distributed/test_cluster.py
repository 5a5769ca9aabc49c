"""A Dask cluster whose workers run their tasks in graphmill's processes."""

import operator
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

import dask  # noqa: E402 - only where distributed is

import graphmill  # noqa: E402 - the same
from graphmill.distributed import GraphmillPlugin  # noqa: E402 - the same
from graphmill.distributed.data import SharedData  # noqa: E402 - the same
from graphmill.distributed.tasks import needs_worker  # noqa: E402 - the same
from graphmill.errors import ArenaFull  # noqa: E402 - the same

#: distributed and Tornado warn of much that is not ours.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(180)]

SOURCE = str(Path(graphmill.__file__).parents[1])
LIMIT = 60
N = 1_000_000


@pytest.fixture(scope="module")
def cluster():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=2, memory_limit="1.5GB", dashboard_address=None
    ) as made:
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        with distributed.Client(made) as client:
            client.register_plugin(GraphmillPlugin())
        yield made
        engines = {child.pid for child in psutil.Process().children(recursive=True)} - before
        assert len(engines) >= 6  # two templates and four workers
    deadline = time.monotonic() + LIMIT
    while left := [pid for pid in engines if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as made:
        # Not by `scheduler_info`: the client asks for that itself every 2 s, without workers.
        workers = set(cluster.scheduler.workers)
        yield made
        assert set(cluster.scheduler.workers) == workers


def engines(client):
    return client.run(lambda dask_worker: dask_worker.executors["default"]._engine.memory())


def pid_of_task(_=None):
    return os.getpid()


def pids(client):
    """The processes that tasks run in, and the Dask workers."""
    tasks = client.map(lambda n: (time.sleep(0.02), os.getpid())[1], range(40), pure=False)
    return set(client.gather(tasks)), set(client.run(os.getpid).values())


def until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_tasks_run_in_processes_of_their_own(client):
    tasks, workers = pids(client)
    assert len(tasks) == 4
    assert not tasks & workers


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: (x + x.T).sum(),
        lambda x: x.rechunk((100, -1)).std(axis=1).sum(),
        lambda x: (x[:, :50].T @ x[:, 50:100]).sum(),
        lambda x: da.map_overlap(lambda block: block * 2, x, depth=1, boundary="none").sum(),
        lambda x: da.linalg.svd(x[:, :20].rechunk((100, 20)))[1].sum(),
        lambda x: x.cumsum(axis=0)[-1].sum(),
    ],
)
def test_arrays(client, compute):
    x = da.random.default_rng(1).random((600, 600), chunks=100)
    expected = float(compute(x).compute(scheduler="sync"))
    assert float(compute(x).compute()) == pytest.approx(expected)


def test_frames(client):
    pandas = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pandas.DataFrame({"a": np.arange(10_000), "b": np.arange(10_000) % 13})
    lazy = dd.from_pandas(frame, npartitions=6)
    expected = frame.groupby("b").a.sum()
    for method in ("p2p", "tasks"):
        with dask.config.set({"dataframe.shuffle.method": method}):
            found = lazy.shuffle("b").groupby("b").a.sum().compute().sort_index()
        pandas.testing.assert_series_equal(found, expected)
    assert lazy.set_index("a").b.sum().compute() == frame.b.sum()


def test_rechunk_between_workers(client):
    x = da.random.default_rng(1).random((800, 800), chunks=200)
    with dask.config.set({"array.rechunk.method": "p2p"}):
        found = x.rechunk((800, 50)).compute()
    np.testing.assert_array_equal(found, x.compute(scheduler="sync"))


def test_parts_of_arrays_are_not_copied(client):
    def live():
        return sum(memory.live for memory in engines(client).values())

    until(lambda: live() < N)
    x = client.submit(np.arange, N, dtype=float)
    distributed.wait(x)
    until(lambda: live() >= 8 * N)
    quarter = N // 4
    parts = client.map(operator.getitem, [x] * 4, [slice(n * quarter, (n + 1) * quarter) for n in range(4)])
    assert sum(client.gather(client.map(np.sum, parts))) == np.arange(N, dtype=float).sum()
    assert live() < 9 * N
    small = client.submit(operator.getitem, x, slice(0, N // 20))
    assert client.submit(np.sum, small).result() == np.arange(N // 20, dtype=float).sum()
    assert live() >= 8.4 * N  # one that was copied, so that the array can go
    with pytest.raises(IndexError, match="out of bounds"):
        client.submit(operator.getitem, x, N).result()
    del x
    assert client.submit(np.max, parts[3]).result() == N - 1


def test_errors_come_as_they_were_raised(client):
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda: 1 // 0).result()
    assert client.submit(pow, 2, 3).result() == 8


def test_tasks_that_use_their_worker_run_there(client):
    def address():
        return distributed.get_worker().address, os.getpid()

    def imports_within():
        from distributed import get_client

        return get_client().submit(pow, 2, 5).result(), os.getpid()

    workers = client.run(os.getpid)
    where, pid = client.submit(address).result()
    assert workers[where] == pid
    result, pid = client.submit(imports_within).result()
    assert (result, pid in workers.values()) == (32, True)
    with dask.annotate(executor="threads"):
        assert dask.delayed(pid_of_task)().compute() in workers.values()


def test_what_uses_distributed_is_found():
    from dask._task_spec import Task

    def plain(x):
        return x + 1

    def nested():
        return [distributed.get_worker() for _ in range(2)]

    assert not needs_worker(Task("x", plain, 1))
    assert not needs_worker(Task("x", np.sum, 1))
    assert needs_worker(Task("x", nested))
    assert needs_worker(Task("x", partial(nested)))
    assert needs_worker(Task("x", map, nested, [1]))


def test_results_stay_in_shared_memory(client):
    address = next(iter(client.cluster.scheduler.workers))
    before = engines(client)[address]
    array = client.submit(np.ones, N, workers=[address])
    sums = [client.submit(lambda x, n: x.sum() + n, array, n, workers=[address]) for n in range(8)]
    assert client.gather(sums) == [N + n for n in range(8)]
    after = engines(client)[address]
    assert after.copied == before.copied
    assert after.passed_on - before.passed_on >= 8 * N * 8
    assert after.live - before.live < 1.1 * N * 8
    del array, sums
    until(lambda: engines(client)[address].live <= before.live)


def test_what_comes_over_the_network_enters_shared_memory_once(client):
    here, there = client.cluster.scheduler.workers
    array = client.submit(np.ones, N, workers=[here])
    before = engines(client)[there].copied
    sums = [client.submit(lambda x, n: x.sum() + n, array, n, workers=[there]) for n in range(8)]
    assert client.gather(sums) == [N + n for n in range(8)]
    assert engines(client)[there].copied - before == N * 8


def test_what_comes_over_the_network_enters_shared_memory_before_it_is_needed(client):
    here, there = client.cluster.scheduler.workers
    array = client.submit(np.ones, N, workers=[here])
    before = engines(client)[there]
    client.replicate(array, workers=[there])
    until(lambda: engines(client)[there].copied - before.copied == N * 8)
    del array
    until(lambda: engines(client)[there].live <= before.live)


def test_what_was_cut_from_a_block_does_not_keep_it_in_place(client):
    here, _ = client.cluster.scheduler.workers
    array = client.submit(np.ones, (8, N), workers=[here])
    part = client.submit(operator.getitem, array, slice(0, 2), workers=[here], pure=False)
    assert client.submit(np.sum, part, workers=[here]).result() == 2 * N

    def is_stored(key, dask_worker):
        return dask_worker.data.stored(key) is not None

    until(lambda: client.run(is_stored, part.key, workers=[here])[here])


def test_tasks_may_change_their_inputs(client):
    def spoil(x):
        x[:] = 7
        return x.sum()

    array = client.submit(np.ones, N)
    assert client.submit(spoil, array).result() == 7 * N
    assert client.submit(np.sum, array).result() == N


def test_killed_processes_cost_no_worker(client):
    x = da.random.default_rng(1).random((2000, 2000), chunks=250).persist()
    expected = float(x.sum().compute())
    workers = set(client.run(os.getpid).values())
    victims = pids(client)[0]
    slow = x.map_blocks(lambda block: (time.sleep(0.05), block)[1])
    future = client.compute((slow + slow.T).sum())
    for victim in victims:
        time.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
    assert future.result() == pytest.approx(2 * expected)
    assert float(x.sum().compute()) == expected
    assert set(client.run(os.getpid).values()) == workers
    assert not pids(client)[0] & victims


def test_a_task_that_kills_its_process_fails_alone(client):
    others = client.map(lambda n: (time.sleep(0.02), n)[1], range(10), pure=False)
    with pytest.raises(graphmill.errors.WorkerDied, match="the task 'kill"):
        client.submit(kill, key="kill-1").result()
    assert client.gather(others) == list(range(10))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_does_not_fit_is_not_pickled():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="700MB", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(GraphmillPlugin())
        x = da.random.default_rng(1).random((20, 5_000_000), chunks=(1, -1)).persist()
        distributed.wait(x)
        (used,) = engines(client).values()
        assert used.on_disk > 0
        assert used.peak <= 0.9 * 700e6
        stored = client.run(lambda dask_worker: list(Path(dask_worker.local_directory).rglob("storage/*")))
        assert list(stored.values()) == [[]]
        assert float(x.mean().compute()) == pytest.approx(0.5, abs=0.001)
        assert len(client.run(os.getpid)) == 1


def test_workers_go_back_to_threads():
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.register_plugin(GraphmillPlugin(memory_limit="1GB"))
        array = client.submit(np.ones, N)
        assert client.submit(pid_of_task).result() != os.getpid()
        assert array.result().sum() == N
        client.unregister_worker_plugin("graphmill")
        assert client.submit(pid_of_task, pure=False).result() == os.getpid()
        assert client.submit(np.sum, array).result() == N


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_dask_worker_with_preload(nanny):
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
        options = [nanny, "--preload", "graphmill.distributed", "--nthreads", "1", "--no-dashboard"]
        process = subprocess.Popen(
            command + options,
            env={**os.environ, "PYTHONPATH": SOURCE, "GRAPHMILL_NUM_WORKERS": "3"},
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=LIMIT)
            (worker,) = cluster.scheduler.workers.values()
            assert worker.nthreads == 3
            tasks, _ = pids(client)
            assert len(tasks) == 3
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT)
    assert not [pid for pid in tasks if psutil.pid_exists(pid)]


def test_no_thread_is_left():
    assert not [each for each in threading.enumerate() if each.name.startswith("graphmill")]


def test_a_value_that_had_no_room_may_enter_later(monkeypatch):
    with graphmill.Engine(1) as engine:
        data, failures = SharedData(engine), []

        def store(value, real=engine.store):
            if not failures:
                failures.append(ArenaFull("no room"))
                raise failures[0]
            return real(value)

        monkeypatch.setattr(engine, "store", store)
        data["x"] = np.ones(N)
        until(lambda: failures and "x" not in data._entering)
        assert data["x"][0] == 1
        assert data.reference("x", None).result()[-1] == 1
        until(lambda: data.stored("x") is not None)
        data.close()
