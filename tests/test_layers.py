"""Who may import whom.

Upper layers import lower ones, never the reverse, and no modules import each other in a circle.
The graph, order and scheduler packages, with all that they reach, are pure: a short list of
standard modules, no I/O, no NumPy, no Dask. Imports are read from the source, wherever they stand
(in functions and under TYPE_CHECKING too), so no module has to run for this.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "graphmill"

#: From the lowest layer up. Modules of one layer may import each other, but not in a circle.
LAYERS = (
    ("errors", "types"),
    ("graph",),
    ("order",),
    ("scheduler",),
    ("machine", "footprint"),
    ("memory", "tracebacks"),
    ("workers",),
    ("config", "callbacks", "collector", "release_log"),
    ("apply", "loop"),
    ("local",),
    ("diagnostics",),
    ("engine",),
    ("executor",),
    ("distributed", "joblib"),
    ("cli",),
    ("__main__",),
)
RANKS = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

PURE = ("graph", "order", "scheduler")
PURE_STDLIB = frozenset(
    "__future__ typing collections collections.abc dataclasses enum functools heapq itertools "
    "operator bisect difflib math types".split()
)
#: What only one module may import.
ONLY_IN = {"_posixshmem": "graphmill.memory.segments"}
#: Ways out of a pure module that need no import.
IMPURE_BUILTINS = frozenset("__import__ breakpoint compile eval exec input open print".split())

#: Loaded by none of the pure packages, nor by anything that they load.
IMPURE_MODULES = frozenset(
    "numpy dask multiprocessing subprocess socket select selectors ssl asyncio concurrent "
    "threading queue random secrets uuid datetime logging tempfile shutil pathlib pickle "
    "ctypes mmap".split()
)


#: Ways to start a process; pickling is no such thing, but the tracker of shared memory is one.
PROCESS_MODULES = ("subprocess", "multiprocessing", "concurrent.futures.process", "pty")
NO_PROCESS_MODULES = ("multiprocessing.reduction", "multiprocessing.process.current_process")
PROCESS_NAMES = frozenset(
    "os.fork os.forkpty os.posix_spawn os.posix_spawnp os.system os.popen os.execl os.execle os.execlp "
    "os.execlpe os.execv os.execve os.execvp os.execvpe os.spawnl os.spawnle os.spawnlp os.spawnlpe "
    "os.spawnv os.spawnve os.spawnvp os.spawnvpe concurrent.futures.ProcessPoolExecutor".split()
)
#: Who may do what of it.
MAY_START = {
    "graphmill.workers.template_handle": {"subprocess"},
    "graphmill.workers.template": {"os.fork"},
    "graphmill.cli.bench": {"subprocess"},
}


@dataclass(frozen=True, slots=True)
class Module:
    """One module of the package, read but not run."""

    #: Dotted name, `graphmill.graph` for graph/__init__.py.
    name: str
    #: Every module that it imports by name, its own package's in full.
    imports: frozenset[str]
    #: Builtins from IMPURE_BUILTINS that it mentions.
    builtins: frozenset[str]
    #: What it mentions of PROCESS_MODULES and PROCESS_NAMES.
    starters: frozenset[str]

    @property
    def part(self) -> str:
        """What LAYERS calls the file or folder it lies in; empty for the package itself."""
        return f"{self.name}.".split(".")[1]


def read_package(sources: Mapping[str, str]) -> dict[str, Module]:
    """Read the modules of a package.

    Parameters
    ----------
    sources : mapping of str to str
        Source text by path below the folder that holds the package: `graphmill/errors.py`.
    """
    names = {path: module_name(path) for path in sources}
    known = frozenset(names.values())
    modules = {}
    for path, name in names.items():
        tree = ast.parse(sources[path], path)
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        mentioned = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        modules[name] = Module(
            name,
            frozenset(imported(tree, package, known)),
            IMPURE_BUILTINS & mentioned,
            frozenset(filter(starts_processes, mentions(tree))),
        )
    return modules


def mentions(tree: ast.AST) -> Iterator[str]:
    """Name all that a tree imports from elsewhere, and attributes such as `os.fork`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def starts_processes(name: str) -> bool:
    def lies_in(modules: tuple[str, ...]) -> bool:
        return any(f"{name}.".startswith(f"{module}.") for module in modules)

    return name in PROCESS_NAMES or (lies_in(PROCESS_MODULES) and not lies_in(NO_PROCESS_MODULES))


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.AST, package: str, known: frozenset[str]) -> Iterator[str]:
    """Name the modules that a tree imports; `known` tells submodules from other names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                above = parents[: len(parents) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in known else base


def own(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def layer_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.name == PACKAGE:
            continue  # the public names stand above all layers
        if module.part not in RANKS:
            yield f"{module.name} has no layer: give it one in LAYERS"
            continue
        for name in sorted(filter(own, module.imports)):
            if name not in modules:
                yield f"{module.name} imports {name}, which does not exist"
            elif name == PACKAGE:
                yield f"{module.name} imports the package itself, which stands above it"
            elif RANKS.get(modules[name].part, 0) > RANKS[module.part]:
                yield f"{module.name} imports {name}, which stands above it"


def cycle_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    edges = {name: filter(own, module.imports) for name, module in modules.items()}
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        yield "import cycle: " + " <- ".join(error.args[1])


def purity_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    for name in sorted(reachable(modules, PURE)):
        module = modules[name]
        for other in sorted(module.imports):
            if not own(other) and other not in PURE_STDLIB:
                yield f"{name} must be pure, but imports {other}"
        for builtin in sorted(module.builtins):
            yield f"{name} must be pure, but uses {builtin}"


def owner_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for name in sorted(module.imports):
            if ONLY_IN.get(name, module.name) != module.name:
                yield f"{module.name} imports {name}, which only {ONLY_IN[name]} may"


def process_faults(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for name in sorted(module.starters):
            allowed = MAY_START.get(module.name, set())
            if not any(f"{name}.".startswith(f"{each}.") for each in allowed):
                yield f"{module.name} must start no process, but uses {name}"


def reachable(modules: Mapping[str, Module], parts: tuple[str, ...]) -> set[str]:
    """The modules of some parts, and all of the package's that they import, however far."""
    seen: set[str] = set()
    todo = [module.name for module in modules.values() if module.part in parts]
    while todo:
        name = todo.pop()
        if name in modules and name not in seen:
            seen.add(name)
            todo.extend(filter(own, modules[name].imports))
    return seen


def faults(modules: Mapping[str, Module]) -> list[str]:
    return [
        *layer_faults(modules),
        *cycle_faults(modules),
        *purity_faults(modules),
        *owner_faults(modules),
        *process_faults(modules),
    ]


@pytest.fixture(scope="module")
def package():
    paths = sorted((SOURCE / PACKAGE).rglob("*.py"))
    return read_package({path.relative_to(SOURCE).as_posix(): path.read_text() for path in paths})


def test_the_package_keeps_the_rules(package):
    assert faults(package) == []


def test_the_package_was_found(package):
    assert {module.part for module in package.values()} >= {"", "errors", *PURE, "local"}


#: A package that keeps the rules; each case below adds or replaces one file of it.
GOOD = {
    "graphmill/__init__.py": "from graphmill import graph, local",
    "graphmill/errors.py": "import types",
    "graphmill/graph/__init__.py": "from graphmill.graph.model import Graph",
    "graphmill/graph/model.py": (
        "from collections.abc import Mapping\nfrom .. import errors\nfrom ..errors import Oops"
    ),
    "graphmill/scheduler/__init__.py": "import dataclasses\nfrom graphmill.graph import Graph",
    "graphmill/local.py": "import queue, dask\nfrom graphmill import scheduler",
}


def test_checker_accepts_a_good_package():
    assert faults(read_package(GOOD)) == []


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("graph/model.py", "import numpy as np", "must be pure, but imports numpy"),
        ("graph/model.py", "import collections.other", "but imports collections.other"),
        ("graph/model.py", "from time import time", "must be pure, but imports time"),
        ("graph/model.py", "def f():\n    import dask", "must be pure, but imports dask"),
        ("graph/model.py", "x = open('file')", "must be pure, but uses open"),
        ("graph/model.py", "__import__('os')", "must be pure, but uses __import__"),
        ("errors.py", "import threading", "graphmill.errors must be pure, but imports threading"),
        ("graph/model.py", "from graphmill import local", "imports graphmill.local, which stands"),
        ("graph/model.py", "from ..scheduler import State", "graphmill.scheduler, which stands"),
        ("graph/model.py", "from .. import local", "imports graphmill.local, which stands above"),
        ("graph/model.py", "if TYPE_CHECKING:\n    import graphmill.local", "which stands above"),
        ("graph/model.py", "import graphmill", "imports the package itself"),
        ("errors.py", "from graphmill.graph import Graph", "graphmill.graph, which stands above"),
        ("graph/model.py", "from . import Graph", "import cycle: "),
        ("graph/model.py", "from graphmill.gone import x", "graphmill.gone, which does not exist"),
        ("config.py", "from graphmill import local", "graphmill.local, which stands above"),
        ("types.py", "from graphmill import errors", None),
        ("stray.py", "", "graphmill.stray has no layer"),
        ("memory/segments.py", "import _posixshmem", None),
        ("local.py", "import _posixshmem", "which only graphmill.memory.segments may"),
        ("local.py", "import subprocess", "graphmill.local must start no process"),
        ("local.py", "def f():\n    from subprocess import run", "but uses subprocess.run"),
        ("local.py", "import multiprocessing.pool", "but uses multiprocessing.pool"),
        ("local.py", "from multiprocessing import Process", "but uses multiprocessing.Process"),
        ("local.py", "from concurrent.futures import ProcessPoolExecutor", "ProcessPoolExecutor"),
        ("local.py", "import os\nos.fork()", "but uses os.fork"),
        ("local.py", "from os import execv", "but uses os.execv"),
        ("memory/arena.py", "from multiprocessing import shared_memory", "must start no process"),
        ("memory/codec.py", "from multiprocessing.reduction import ForkingPickler", None),
        ("local.py", "import os\nfrom concurrent.futures import Future\nos.getpid()", None),
        ("workers/template_handle.py", "import subprocess\nsubprocess.Popen", None),
        ("workers/template.py", "import os\nos.fork()", None),
        ("workers/template.py", "import subprocess", "must start no process"),
    ],
)
def test_checker_finds(path, source, fault):
    found = faults(read_package({**GOOD, f"{PACKAGE}/{path}": source}))
    if fault is None:
        assert found == []
    else:
        assert any(fault in each for each in found), found


#: graphmill/__init__.py loads the upper layers too, so an empty package stands in for it.
#: With -I and -S no site-packages are on the path: what needs one of them fails to import.
PROBE = """
import sys, types

source, *parts = sys.argv[1:]
package = types.ModuleType("graphmill")
package.__path__ = [source]
sys.modules["graphmill"] = package
before = set(sys.modules)
for part in parts:
    __import__(f"graphmill.{part}")
new = set(sys.modules) - before
import json
print(json.dumps(sorted(new)))
"""


def test_pure_packages_load_nothing_impure():
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", PROBE, str(SOURCE / PACKAGE), *PURE],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert PACKAGE in loaded
    assert loaded & IMPURE_MODULES == set()
    assert loaded - {PACKAGE} <= sys.stdlib_module_names
