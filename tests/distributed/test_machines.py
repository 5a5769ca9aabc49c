"""A cluster of two machines, as far as one has them: each has a network of its own, joined by a bridge.

Needs the right to make network namespaces, which root has, and a system that can.
"""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

import graphmill  # noqa: E402 - only where distributed is

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(180)]

SOURCE = str(Path(graphmill.__file__).parents[1])
LIMIT = 90
PREFIX = f"gm{os.getpid() % 100_000}"
#: A network that documentation may use, and nobody else does.
NETWORK = "203.0.113"


def ip(*arguments):
    """Change networks; skips the test where that is not possible."""
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=LIMIT)
    except FileNotFoundError:
        pytest.skip("needs the command ip")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"networks cannot be made here: ip {' '.join(arguments)}: {error.stderr.strip()}")


def ip_delete(*arguments):
    subprocess.run(["ip", *arguments], check=False, capture_output=True, timeout=LIMIT)


def see_that_they_are_joined(names):
    """Skip the test where packets do not get through, as firewalls may have it."""
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()"
    listen = (
        "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); s.accept()"
    )
    first, second = names
    for server, address, client in (
        ([], f"{NETWORK}.1", first),
        ([], f"{NETWORK}.1", second),
        (["ip", "netns", "exec", second], f"{NETWORK}.3", first),
    ):
        command = [*server, sys.executable, "-c", listen]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listener:
            try:
                port = listener.stdout.readline().strip()
                caller = ["ip", "netns", "exec", client, sys.executable, "-c", connect, address, port]
                subprocess.run(caller, check=True, capture_output=True, text=True, timeout=LIMIT)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no way from {client} to {address}: {error.stderr.strip().splitlines()[-1]}")
            finally:
                listener.kill()


@pytest.fixture(scope="module")
def machines():
    """Two network namespaces, and this process's address on the bridge between them."""
    with ExitStack() as stack:
        bridge = f"{PREFIX}br"
        ip("link", "add", bridge, "type", "bridge")
        stack.callback(ip_delete, "link", "del", bridge)
        ip("addr", "add", f"{NETWORK}.1/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        names = []
        for number in (2, 3):
            name, outside, inside = f"{PREFIX}n{number}", f"{PREFIX}o{number}", f"{PREFIX}i{number}"
            ip("netns", "add", name)
            stack.callback(ip_delete, "netns", "del", name)
            ip("link", "add", outside, "type", "veth", "peer", "name", inside)
            stack.callback(ip_delete, "link", "del", outside)
            ip("link", "set", inside, "netns", name)
            ip("link", "set", outside, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", inside)
            ip("-n", name, "link", "set", inside, "up")
            ip("-n", name, "link", "set", "lo", "up")
            names.append(name)
        see_that_they_are_joined(names)
        yield names, f"{NETWORK}.1"


@pytest.fixture
def client(machines):
    """A client of a cluster with a worker of two processes on each machine; the cluster, and the workers."""
    names, address = machines
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAPHMILL_")}
    workers: list[subprocess.Popen[str]] = []
    with (
        distributed.LocalCluster(n_workers=0, host=address, dashboard_address=None) as cluster,
        distributed.Client(cluster) as made,
    ):
        command = [sys.executable, "-m", "graphmill", "worker", "--workers", "2", "--memory-limit", "1GB"]
        try:
            workers.extend(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *command, "--name", name, cluster.scheduler_address],
                    env={**kept, "PYTHONPATH": SOURCE},
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for name in names
            )
            made.wait_for_workers(2, timeout=LIMIT)
            yield made, cluster, workers
        finally:
            for worker in workers:
                worker.send_signal(signal.SIGINT)
            said = [worker.communicate(timeout=LIMIT)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said


def test_arrays_and_a_killed_process(client):
    made, cluster, workers = client
    hosts = {info.host for info in cluster.scheduler.workers.values()}
    assert hosts == {f"{NETWORK}.2", f"{NETWORK}.3"}
    x = da.random.default_rng(1).random((2000, 2000), chunks=250)
    wanted = float(((x + x.T) - x.mean(axis=0)).std().compute(scheduler="sync"))
    assert float(((x + x.T) - x.mean(axis=0)).std().compute()) == pytest.approx(wanted, rel=1e-12)
    kept = x.persist()
    # Pieces cross the network here, from one machine's memory into the other's.
    assert float(kept.rechunk((2000, 125)).sum().compute()) == pytest.approx(float(kept.sum().compute()))
    assert len({worker for workers in made.who_has(kept).values() for worker in workers}) == 2
    names = set(cluster.scheduler.workers)
    victim = _processes_of(workers[0])[-1]
    victim.kill()
    assert float(((kept + kept.T) - kept.mean(axis=0)).std().compute()) == pytest.approx(wanted, rel=1e-12)
    assert set(cluster.scheduler.workers) == names, "no Dask worker is lost"


def _processes_of(worker):
    """List a worker's processes that run tasks: those that a template has forked."""
    own = psutil.Process(worker.pid).children()
    return [process for template in own for process in template.children()]
