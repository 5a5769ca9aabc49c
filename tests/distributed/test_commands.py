"""`graphmill worker` and `graphmill run --cluster`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

distributed = pytest.importorskip("distributed")

import graphmill  # noqa: E402 - only where distributed is

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(180)]

SOURCE = str(Path(graphmill.__file__).parents[1])
COMMAND = (sys.executable, "-m", "graphmill")
LIMIT = 90


@pytest.fixture
def environment():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAPHMILL_")}
    return {**kept, "PYTHONPATH": SOURCE}


@pytest.fixture
def cluster():
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as made:
        yield made


def has_been_imported(module):
    import sys

    return module in sys.modules


def test_a_worker_and_a_script_that_uses_it(cluster, environment, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, dask\n"
        "import dask.array as da\n"
        "@dask.delayed\n"
        "def pid(n):\n    return os.getpid()\n"
        "x = da.ones((1000, 1000), chunks=200)\n"
        "print(sys.argv[1], float((x + x.T).sum().compute()))\n"
        "print(*dask.compute(*[pid(n) for n in range(20)]))\n"
    )
    address = cluster.scheduler_address
    worker = subprocess.Popen(
        [*COMMAND, "worker", "--workers", "2", "--memory-limit", "1GB", "--name", "here", address],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with distributed.Client(cluster) as client:
            client.wait_for_workers(1, timeout=LIMIT)
            (info,) = cluster.scheduler.workers.values()
            assert (info.nthreads, info.name, info.memory_limit) == (2, "here", 10**9)
            # Shared between its processes, so that not each has to import it: that takes 60 MB and 0.5 s.
            assert client.submit(has_been_imported, "dask.array").result()
            assert not client.submit(has_been_imported, "pandas").result()
        done = subprocess.run(
            [*COMMAND, "run", "--cluster", address, script, "given"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        first, second = done.stdout.splitlines()
        assert first == "given 2000000.0"
        ours = {child.pid for child in psutil.Process(worker.pid).children(recursive=True)}
        assert set(map(int, second.split())) <= ours
    finally:
        worker.send_signal(signal.SIGINT)
        _, said = worker.communicate(timeout=LIMIT)
    assert worker.returncode == 0, said
    assert "2 processes at tcp://" in said
    assert not any(map(psutil.pid_exists, ours))


@pytest.mark.parametrize("command", [["worker"], ["run", "--cluster"]])
def test_a_scheduler_that_is_not_there(command, environment, tmp_path):
    (tmp_path / "script.py").touch()
    program = [tmp_path / "script.py"] if command[0] == "run" else []
    done = subprocess.run(
        [*COMMAND, *command, "tcp://127.0.0.1:9", *program],
        env={**environment, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 2
    assert "The scheduler at tcp://127.0.0.1:9 does not answer" in done.stderr


def test_options_of_this_machine_are_refused(environment, tmp_path):
    (tmp_path / "script.py").touch()
    done = subprocess.run(
        [*COMMAND, "run", "--cluster", "tcp://127.0.0.1:9", "--workers", "2", tmp_path / "script.py"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 2
    assert "--workers cannot be used with --cluster" in done.stderr
