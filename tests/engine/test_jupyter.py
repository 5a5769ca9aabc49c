"""The engine in a notebook's kernel: cells, interrupting it, and what is left when it ends."""

import json
import os
import sys
import time

import psutil
import pytest

from tests.engine.conftest import LIMIT, SOURCE, left_of

pytest.importorskip("ipykernel")
jupyter_client = pytest.importorskip("jupyter_client")

FIRST = """
from pathlib import Path
import time
import graphmill

def double(x):
    return 2 * x

def compute(task):
    return graphmill.get({("x", i): (task, i) for i in range(6)}, [("x", i) for i in range(6)])

print(compute(double))
"""
RIGHT = "(0, 2, 4, 6, 8, 10)\n"

#: Tasks that never end by themselves: one hears signals, the other sits in C code that does not.
HEARS = """
def hears(x):
    Path({sign!r}).touch()
    while True:
        time.sleep(0.1)

compute(hears)
"""
DEAF = """
def deaf(x):
    Path({sign!r}).touch()
    return sum(range(10**15))

compute(deaf)
"""


class Notebook:
    """A kernel, and the cells that are run in it."""

    def __init__(self, folder):
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python",
            "language": "python",
        }
        (folder / "specs" / "own").mkdir(parents=True)
        (folder / "specs" / "own" / "kernel.json").write_text(json.dumps(spec))
        self._sign = folder / "under way"
        self.manager = jupyter_client.KernelManager(
            kernel_name="own",
            kernel_spec_manager=jupyter_client.kernelspec.KernelSpecManager(
                kernel_dirs=[str(folder / "specs")]
            ),
            connection_file=str(folder / "connection.json"),
        )
        self.manager.start_kernel(
            env={**os.environ, "PYTHONPATH": SOURCE, "IPYTHONDIR": str(folder / "ipython")}
        )
        self.pid = self.manager.provisioner.pid
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LIMIT)

    def run(self, cell):
        """Run a cell; return what it printed, and the name of the exception that it raised."""
        return self._outcome(self.client.execute(cell))

    def interrupted(self, cell):
        """Run a cell, interrupt the kernel while its tasks run, and return the same."""
        self._sign.unlink(missing_ok=True)
        message = self.client.execute(cell.format(sign=str(self._sign)))
        deadline = time.monotonic() + LIMIT
        while not self._sign.exists():
            assert time.monotonic() < deadline, "no task of the cell has begun"
            time.sleep(0.01)
        self.manager.interrupt_kernel()
        return self._outcome(message)

    def processes(self):
        return psutil.Process(self.pid).children(recursive=True)

    def close(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=True)

    def _outcome(self, message):
        printed, raised = "", None
        while True:
            heard = self.client.get_iopub_msg(timeout=LIMIT)
            content = heard["content"]
            if heard["parent_header"].get("msg_id") != message:
                continue
            if heard["msg_type"] == "stream":
                printed += content["text"]
            elif heard["msg_type"] == "error":
                raised = content["ename"]
            elif heard["msg_type"] == "status" and content["execution_state"] == "idle":
                return printed, raised


@pytest.fixture
def notebook(tmp_path):
    made = Notebook(tmp_path)
    yield made
    made.close()


def test_a_kernel_that_is_interrupted_goes_on(notebook):
    assert notebook.run(FIRST) == (RIGHT, None)
    for cell in (HEARS, DEAF):
        assert notebook.interrupted(cell) == ("", "KeyboardInterrupt")
        assert notebook.run("print(compute(double))") == (RIGHT, None)
    processes = notebook.processes()
    assert processes
    notebook.manager.shutdown_kernel()
    assert not any(process.is_running() for process in processes)
    assert left_of(notebook.pid) == []


def test_a_kernel_that_is_killed_leaves_nothing(notebook):
    assert notebook.run(FIRST) == (RIGHT, None)
    processes = notebook.processes()
    notebook.manager.shutdown_kernel(now=True)
    _, alive = psutil.wait_procs(processes, timeout=LIMIT)
    assert not alive
    assert left_of(notebook.pid) == []
