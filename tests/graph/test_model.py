"""Graphs of every dialect, read as one."""

import os
import pickle
import subprocess
import sys
from collections import OrderedDict, UserDict
from operator import add
from pathlib import Path
from typing import NamedTuple

import dask
import dask.array as da
import pytest
from dask._task_spec import Alias, DataNode, Dict, List, Set, Task, TaskRef, Tuple
from dask.highlevelgraph import HighLevelGraph

import graphmill
from graphmill.errors import CycleError, GraphError, MissingDependencyError, MissingKeyError
from graphmill.graph import Graph, as_mapping, evaluate, has_tasks, istask, read_graph
from graphmill.local import get_sync


class Point(NamedTuple):
    x: object
    y: object


def inc(x):
    return x + 1


def collect(*args, **kwargs):
    return (*args, kwargs) if kwargs else args


class Future:
    """What `distributed` and our own `persist` put into graphs."""

    __dask_future__ = True

    def __init__(self, key):
        self.key = key


def check(dsk, key, value, dependencies=None):
    """Check what a key comes to, here and read alone, and what it depends on."""
    assert get_sync(dsk, key) == value
    assert repr(get_sync(dsk, key)) == repr(value)
    graph = read_graph(dsk, [key])
    if dependencies is not None:
        assert graph.dependencies[key] == set(dependencies)
    if key in graph.tasks:
        assert graph.tasks[key].dependencies == graph.dependencies[key]


# ---- tuple graphs


@pytest.mark.parametrize(
    ("spec", "value", "dependencies"),
    [
        ((inc, "x"), 2, "x"),
        ((inc, (inc, (inc, "x"))), 4, "x"),
        ((add, "x", "y"), 11, "xy"),
        ((add, (inc, "x"), (add, "y", "x")), 13, "xy"),
        ((sum, ["x", "y", 5]), 16, "xy"),
        ((collect, [["x"], [["y", "z"]]]), ([[1], [[10, "z"]]],), "xy"),
        ((collect, {"a": "x", "x": ["y"]}), ({"a": 1, "x": [10]},), "xy"),
        ((collect, {"a": {"b": (inc, "x")}}), ({"a": {"b": 2}},), "x"),
        ((collect, ("x", "nothing")), ((1, "nothing"),), "x"),
        ((collect, (int,)), (0,), ""),
        ((collect,), (), ""),
        ((collect, ("t", 0), ("t", 1)), (7, ("t", 1)), [("t", 0)]),
        ((collect, [("t", 0)], ("t", [0])), ([7], ("t", [0])), [("t", 0)]),
        ((collect, Point("x", (inc, "y"))), (Point(1, 11),), "xy"),
        ((collect, frozenset(["x"])), (frozenset([1]),), "x"),
        ((collect, 3, 4.5, b"bytes"), ("three", 4.5, "bytes"), [3, b"bytes"]),
        ((collect, "z", None, slice(0, 2)), ("z", None, slice(0, 2)), ""),
        (["x", (inc, "y")], [1, 11], "xy"),
        ("x", 1, "x"),
        (("t", 0), 7, [("t", 0)]),
        (3, "three", [3]),
        ({"a": "x"}, {"a": 1}, "x"),
    ],
)
def test_tuple_tasks(spec, value, dependencies):
    dsk = {"x": 1, "y": 10, ("t", 0): 7, 3: "three", b"bytes": "bytes", "task": spec}
    check(dsk, "task", value, dependencies)


@pytest.mark.parametrize(
    "value",
    [
        5,
        "text",
        None,
        [1, [2, "q"]],
        ("a", 1),
        {"a": [1]},
        {1, 2},
        Point(1, 2),
        object(),
        print,
        int,
        (),
        [],
        OrderedDict(a="x"),
        UserDict(a="x"),
    ],
)
def test_data(value):
    graph = read_graph({"d": value, "x": 1}, ["d"])
    assert graph.tasks == {}
    assert graph.data["d"] is value
    assert graph.dependencies == {"d": frozenset()}
    assert get_sync({"d": value, "x": 1}, "d") is value


class Names(list):
    pass


@pytest.mark.parametrize("value", [Names(["x"]), OrderedDict(a="x")])
def test_subclasses_of_containers_are_data(value):
    (got,) = get_sync({"x": 1, "t": (collect, value)}, "t")
    assert got is value


def test_a_value_that_equals_a_key_is_not_looked_into():
    # what a task returns is data, whatever it looks like
    for value in ("x", (inc, "x"), ["x"]):
        dsk = {"x": 1, "made": (lambda value=value: value,), "t": (collect, "made")}
        assert get_sync(dsk, "t") == (value,)


def test_a_task_may_hold_what_cannot_be_hashed():
    class Odd:
        __hash__ = None

    odd = Odd()
    assert get_sync({"t": (collect, odd, (odd, 1), [odd])}, "t") == (odd, (odd, 1), [odd])


def test_keys_of_named_types():
    class Name(str):
        __slots__ = ()

    dsk = {Name("x"): 1, "y": (inc, "x"), "z": (inc, Name("x"))}
    assert get_sync(dsk, ["y", "z"]) == (2, 2)


def test_keys_of_the_cache_count_as_keys():
    graph = read_graph({"t": (add, "x", "elsewhere"), "x": 1}, ["t"], {"elsewhere": 5})
    assert graph.dependencies["t"] == {"x", "elsewhere"}
    assert graph.dependencies["elsewhere"] == frozenset()
    assert graph.data == {"x": 1}


# ---- Dask's task-spec nodes


def test_task_spec_nodes():
    dsk = {
        "data": DataNode("data", 5),
        "task": Task("task", collect, TaskRef("data"), 1, key=TaskRef("data")),
        "alias": Alias("alias", "task"),
        "alias of alias": Alias("alias of alias", "alias"),
        "list": List(TaskRef("data"), Task(None, inc, TaskRef("data"))),
        "tuple": Tuple(TaskRef("data"), 2),
        "set": Set(TaskRef("data"), 2),
        "dict": Dict({"a": TaskRef("data"), "b": List(TaskRef("alias"))}),
    }
    check(dsk, "data", 5, [])
    check(dsk, "task", (5, 1, {"key": 5}), ["data"])
    check(dsk, "alias", (5, 1, {"key": 5}), ["task"])
    check(dsk, "alias of alias", (5, 1, {"key": 5}), ["alias"])
    check(dsk, "list", [5, 6], ["data"])
    check(dsk, "tuple", (5, 2), ["data"])
    check(dsk, "set", {5, 2}, ["data"])
    check(dsk, "dict", {"a": 5, "b": [(5, 1, {"key": 5})]}, ["data", "alias"])


def test_task_spec_nodes_are_kept_as_they_are():
    dsk = {"x": DataNode("x", 1), "y": Task("y", inc, TaskRef("x"))}
    graph = read_graph(dsk)
    assert graph.tasks["y"] is dsk["y"]
    assert graph.data == {"x": 1}


def test_data_nodes_are_no_tasks():
    # their value is data even if it looks like a task
    dsk = {"x": DataNode("x", (inc, "y")), "t": Task("t", collect, TaskRef("x"))}
    assert get_sync(dsk, ["x", "t"]) == ((inc, "y"), ((inc, "y"),))


def test_fused_tasks():
    a = Task("a", inc, 1)
    b = Task("b", inc, TaskRef("a"))
    c = Task("c", add, TaskRef("b"), TaskRef("x"))
    dsk = {"x": DataNode("x", 10), "fused": Task.fuse(a, b, c, key="fused")}
    check(dsk, "fused", 13, ["x"])
    check({**dsk, "t": (inc, "fused")}, "t", 14, ["fused"])


def test_nested_nodes():
    dsk = {
        "x": 1,
        "t": Task("t", collect, List(Task(None, inc, TaskRef("x")), Dict({"a": TaskRef("x")}))),
    }
    check(dsk, "t", ([2, {"a": 1}],), ["x"])


# ---- mixtures


@pytest.mark.parametrize(
    ("spec", "value", "dependencies"),
    [
        ((inc, Task(None, inc, TaskRef("x"))), 3, "x"),
        ((collect, TaskRef("x"), "y"), (1, 10), "xy"),
        ((collect, [TaskRef("x"), (inc, TaskRef("y"))]), ([1, 11],), "xy"),
        ((collect, {"a": TaskRef("x")}), ({"a": 1},), "x"),
        ((collect, ("no key", TaskRef("x"))), (("no key", 1),), "x"),
        ((collect, Alias(None, "x")), (1,), "x"),
        ((collect, DataNode(None, "x")), ("x",), ""),
        ((collect, List(TaskRef("x"), 2)), ([1, 2],), "x"),
        ((collect, Point(TaskRef("x"), 2)), (Point(1, 2),), "x"),
        ((collect, Future("x")), (1,), "x"),
        ([TaskRef("x"), "y"], [1, 10], "xy"),
        (TaskRef("x"), 1, "x"),
        (Future("x"), 1, "x"),
        (Task("mixed", add, TaskRef("x"), TaskRef("y")), 11, "xy"),
    ],
)
def test_mixtures(spec, value, dependencies):
    check({"x": 1, "y": DataNode("y", 10), "mixed": spec}, "mixed", value, dependencies)


def test_mixed_tasks_can_be_pickled():
    spec = (collect, [TaskRef("x"), (inc, "y")])
    task = read_graph({"x": 1, "y": 2, "t": spec}).tasks["t"]
    again = pickle.loads(pickle.dumps(task))
    assert type(again) is type(task)
    assert again({"x": 1, "y": 2}) == task({"x": 1, "y": 2}) == ([1, 3],)
    assert again.dependencies == {"x", "y"}
    assert "TaskRef" in repr(again)


def test_futures_whose_keys_are_only_in_the_cache():
    dsk = {"t": (inc, Future("elsewhere"))}
    assert get_sync(dsk, "t", cache={"elsewhere": 5}) == 6
    with pytest.raises(MissingDependencyError, match="'elsewhere'"):
        get_sync(dsk, "t")


def test_istask_and_has_tasks_know_nodes():
    task, data = Task("t", inc, 1), DataNode("d", 1)
    assert istask(task)
    assert istask(Alias("a", "b"))
    assert not istask(data)
    assert has_tasks({}, [task])
    assert has_tasks({}, TaskRef("x"))


def test_evaluate():
    assert evaluate((add, "x", (inc, "y")), {"x": 1, "y": 2}) == 4
    assert evaluate([("a", 1), ("a", 2)], {("a", 1): "one"}) == ["one", ("a", 2)]


# ---- what is a graph


def test_high_level_graphs():
    hlg = HighLevelGraph(
        {"low": {("low", 0): 1, ("low", 1): 2}, "high": {"sum": (sum, [("low", 0), ("low", 1)])}},
        {"low": set(), "high": {"low"}},
    )
    assert get_sync(hlg, "sum") == 3
    assert as_mapping(hlg) == dict(hlg)


def test_collections_and_expressions():
    x = da.ones((4, 4), chunks=2).sum()
    assert get_sync(x, x.__dask_keys__()) == (16.0,)
    assert get_sync(x.__dask_graph__(), x.__dask_keys__()) == (16.0,)


def test_the_expression_that_dask_gives():
    seen = []

    def get(dsk, keys, **kwargs):
        seen.append(dsk)
        return get_sync(dsk, keys, **kwargs)

    x = da.ones((4, 4), chunks=2)
    assert (x + 1).sum().compute(scheduler=get) == 32
    assert dask.delayed(inc)(1).compute(scheduler=get) == 2
    assert dask.compute(x.sum(), dask.delayed(inc)(3), scheduler=get) == (16, 4)
    assert any(not isinstance(dsk, dict) for dsk in seen)


def test_objects_with_a_graph():
    class Expression:
        def __dask_graph__(self):
            return UserDict(x=1, y=(inc, "x"))

    assert get_sync(Expression(), "y") == 2


def test_a_dict_is_not_copied():
    dsk = {"x": 1}
    assert as_mapping(dsk) is dsk
    assert as_mapping(UserDict(dsk)) == dsk


@pytest.mark.parametrize("dsk", [None, 3, "text", [1], {"x"}])
def test_what_is_no_graph(dsk):
    with pytest.raises(TypeError, match=type(dsk).__name__):
        as_mapping(dsk)


# ---- reading


def test_only_what_is_needed_is_read():
    dsk = {
        "x": 1,
        "unused data": 2,
        "y": (inc, "x"),
        "unused": (add, "y", "absent but harmless"),
        "cycle": (inc, "cycle"),
    }
    graph = read_graph(dsk, ["y"])
    assert set(graph.tasks) == {"y"}
    assert graph.data == {"x": 1}
    assert set(graph.dependencies) == {"x", "y"}


def test_cached_keys_cut_the_graph():
    dsk = {"a": (inc, 0), "b": (inc, "a"), "c": (add, "a", "b")}
    graph = read_graph(dsk, ["c"], {"b": 1})
    assert set(graph.tasks) == {"a", "c"}
    assert set(read_graph(dsk, ["c"], {"b": 1, "a": 1}).tasks) == {"c"}
    assert set(read_graph(dsk, ["c"], {"c": 1}).tasks) == set()


def test_keys_keep_the_order_of_the_graph():
    dsk = {f"k{i}": (collect, *[f"k{j}" for j in range(i)]) for i in range(20)}
    assert list(read_graph(dsk).dependencies) == list(dsk)
    backwards = dict(reversed(dsk.items()))
    assert list(read_graph(backwards, ["k19"]).dependencies) == list(backwards)


def test_tasks_keep_the_order_of_the_graph_too():
    dsk = {f"k{i}": (collect, *[f"k{j}" for j in range(i)]) for i in range(1, 20)}
    dsk = dict(reversed(dsk.items())) | {"k0": 0, "unused": (inc, 0)}
    assert list(read_graph(dsk, ["k3", "k19"]).tasks) == [f"k{i}" for i in range(19, 0, -1)]
    assert list(read_graph(dsk, ["k19"], {"k5": 1}).tasks)[-1] == "k1"


def test_the_graph_given_is_not_changed():
    dsk = {"x": 1, "y": (inc, "x"), "unused": (inc, "y"), "cached": (inc, 0), "z": (add, "y", "cached")}
    before = dict(dsk)
    graph = read_graph(dsk, ["z"], {"cached": 1})
    assert (set(graph.tasks), graph.data) == ({"y", "z"}, {"x": 1})
    assert dsk == before


def test_sets_that_a_node_may_change_are_not_kept():
    class Loose(Task):
        dependencies = {"x"}

    node = Loose("y", inc, TaskRef("x"))
    assert type(read_graph({"x": 1, "y": node}).dependencies["y"]) is frozenset


def test_keys_asked_for_are_missed_before_those_that_tasks_need():
    dsk = {"user": Task("user", inc, TaskRef("absent"))}
    with pytest.raises(MissingKeyError, match="'not there'"):
        read_graph(dsk, ["user", "not there"])


def test_dependents():
    graph = read_graph({"x": 1, "y": (inc, "x"), "z": (add, "x", "y")})
    assert graph.dependents() == {"x": {"y", "z"}, "y": {"z"}, "z": set()}


def test_an_empty_graph():
    graph = read_graph({})
    assert graph == Graph()
    assert graph.dependents() == {}
    graph.check_acyclic()


def test_deep_chains():
    n = 20_000
    dsk = {0: (inc, 0.5), **{i: (inc, i - 1) for i in range(1, n)}}
    graph = read_graph(dsk, [n - 1])
    assert len(graph.tasks) == n
    graph.check_acyclic()


def test_deeply_nested_lists_are_read():
    spec = "x"
    for _ in range(5_000):
        spec = [spec]
    assert read_graph({"x": 1, "deep": spec}).dependencies["deep"] == {"x"}


def test_missing_dependencies():
    dsk = {f"user {i}": Task(f"user {i}", inc, TaskRef("absent")) for i in range(6)}
    with pytest.raises(MissingDependencyError, match="Missing dependency 'absent'") as caught:
        read_graph(dsk)
    assert "'user " in str(caught.value)
    assert isinstance(caught.value, GraphError)
    for key in dsk:
        with pytest.raises(MissingDependencyError, match=repr(key)):
            read_graph(dsk, [key])


@pytest.mark.parametrize("spec", [Alias("a", "absent"), (inc, TaskRef("absent"))])
def test_missing_dependencies_of_any_dialect(spec):
    with pytest.raises(MissingDependencyError, match=r"'absent'.*'a'"):
        read_graph({"a": spec})


def test_missing_keys():
    dsk = {"apples": 1, ("pears", 0): 2}
    with pytest.raises(MissingKeyError) as caught:
        read_graph(dsk, ["appels"])
    assert str(caught.value) == ("The graph has no key 'appels'; keys that look like it: 'apples'")
    with pytest.raises(MissingKeyError, match=r"look like it: \('pears', 0\)"):
        read_graph(dsk, [("pears", 1)])
    with pytest.raises(MissingKeyError, match="has no key 'x'"):
        read_graph({}, ["x"])


@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_cycles(length):
    dsk = {("k", i): (inc, ("k", (i + 1) % length)) for i in range(length)}
    with pytest.raises(CycleError, match="no accessible jobs") as caught:
        read_graph(dsk).check_acyclic()
    assert str(caught.value).count("('k', ") == (length + 1 if length < 12 else 12)
    assert (f"... {length + 1 - 12} more ..." in str(caught.value)) == (length > 12)


# ---- without Dask

WITHOUT_DASK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("dask", "distributed", "numpy", "cloudpickle", "psutil"):
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, Block())

from multiprocessing.pool import ThreadPool
from operator import add
from graphmill import config
from graphmill.local import Callback, get_async, get_sync, start_state_from_dask

dsk = {"x": 1, ("t", 0): (add, "x", 10), "z": (sum, ["x", ("t", 0), (add, "x", 1)])}
seen = []
with Callback(pretask=lambda key, dsk, state: seen.append(key)), config.set(num_workers=2):
    assert get_sync(dsk, ["z", ["x"]]) == (14, (1,))
    with ThreadPool(2) as pool:
        assert get_async(pool.apply_async, None, dsk, "z") == 14
        pool.close()
        pool.join()
assert seen == [("t", 0), "z"] * 2, seen
assert start_state_from_dask(dsk)["ready"] == [("t", 0)]
try:
    import dask
except ImportError:
    print("fine")
assert not any(name.partition(".")[0] in ("dask", "numpy") for name in sys.modules)
"""


def test_a_tuple_graph_runs_without_dask():
    source = str(Path(graphmill.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_DASK],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("fine\n", "", 0)
