"""What `import graphmill` may do: load itself, and nothing else."""

import json
import subprocess
import sys

import pytest

#: Third-party packages that `import graphmill` may load. Add one only on purpose.
ALLOWED_THIRD_PARTY = frozenset[str]()

PROBE = """
import json, os, sys, threading

modules = set(sys.modules)
environment = dict(os.environ)
import graphmill
new = {name.partition(".")[0] for name in set(sys.modules) - modules}
python_threads = [thread.name for thread in threading.enumerate()]
changed = dict(os.environ) != environment

import psutil  # only now: it must not count as loaded by graphmill

process = psutil.Process()
print(json.dumps({
    "new": sorted(new - sys.stdlib_module_names),
    "python_threads": python_threads,
    "native_threads": process.num_threads(),
    "children": [child.pid for child in process.children(recursive=True)],
    "environment_changed": changed,
    "version": graphmill.__version__,
}))
"""


@pytest.fixture(scope="module")
def seen():
    """What a fresh interpreter sees when it imports graphmill."""
    run = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", PROBE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_loads_only_itself(seen):
    assert set(seen["new"]) - ALLOWED_THIRD_PARTY == {"graphmill"}


def test_starts_no_thread(seen):
    assert seen["python_threads"] == ["MainThread"]
    assert seen["native_threads"] == 1


def test_starts_no_process(seen):
    assert seen["children"] == []


def test_leaves_the_environment_alone(seen):
    assert not seen["environment_changed"]


def test_has_a_version(seen):
    assert seen["version"][0].isdigit()
