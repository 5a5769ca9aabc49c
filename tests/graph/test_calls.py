"""Tasks as calls: what they give is what the task itself gives."""

import pickle
from operator import add

import pytest

from graphmill.graph import read_graph
from graphmill.graph.calls import Call, Calls
from graphmill.graph.legacy import TupleTask

spec = pytest.importorskip("dask._task_spec")
Alias, DataNode, Dict, List, Task, TaskRef, Tuple = (
    getattr(spec, name) for name in ("Alias", "DataNode", "Dict", "List", "Task", "TaskRef", "Tuple")
)


def show(*arguments, **named):
    return arguments, named


def append(items, item):
    items.append(item)
    return items


def as_worker(node, values):
    """Run a node as a worker does: its parts, pickled, on inputs by number; None if it has none."""
    parts = Calls().parts(node, values)
    if parts is None:
        return None
    return Call(pickle.loads(pickle.dumps(parts)))(dict(enumerate(values.values())))


VALUES = {"x": 1, ("y", 0): [2, 3], 5: "five"}


@pytest.mark.parametrize(
    "node",
    [
        Task("t", show),
        Task("t", show, 1, "x", None, [1, 2]),
        Task("t", show, TaskRef("x"), 2, TaskRef(("y", 0)), TaskRef("x")),
        Task("t", show, TaskRef(5), named=TaskRef("x"), other="x"),
        Task("t", show, List(TaskRef("x"), Tuple(1, TaskRef(("y", 0))), "x")),
        Task("t", show, Task(None, add, TaskRef("x"), 10), named=List(Task(None, abs, -1))),
        Task("t", show, Alias("x"), DataNode(None, {"a": [1]}), {"x": "x"}),
        Task("t", spec._identity_cast, TaskRef("x"), 2, typ=list),
        List(TaskRef("x"), 1),
    ],
)
def test_dasks_tasks_give_what_they_give_themselves(node):
    values = {key: VALUES[key] for key in node.dependencies}
    assert as_worker(node, values) == node(values)


@pytest.mark.parametrize(
    "task",
    [
        (show,),
        (show, 1, "not a key", b"x", 1.5, None),
        (add, "x", "x"),
        (show, ("y", 0), 5, "x"),
        (show, 5.0),
    ],
)
def test_tuple_tasks_give_what_they_give_themselves(task):
    graph = read_graph({**VALUES, "task": task}, ["task"])
    node = graph.tasks["task"]
    values = {key: VALUES[key] for key in node.dependencies}
    assert as_worker(node, values) == node(values)


def test_fused_tasks_give_what_they_give_themselves():
    first = Task("a", add, TaskRef("x"), TaskRef("z"))
    second = Task("b", show, TaskRef("a"), List(TaskRef("a"), TaskRef("x")))
    fused = Task.fuse(first, second)
    assert fused.func is spec._execute_subgraph
    values = {key: {"x": 1, "z": 5}[key] for key in fused.dependencies}
    assert as_worker(fused, values) == fused(values) == ((6, [6, 1]), {})


def test_fused_tasks_share_what_is_used_twice():
    first = Task("a", append, List(), TaskRef("x"))
    second = Task("b", append, TaskRef("a"), 2)
    third = Task("c", show, TaskRef("b"), TaskRef("a"))
    fused = Task.fuse(first, second, third)
    assert as_worker(fused, {"x": 1}) == fused({"x": 1}) == (([1, 2], [1, 2]), {})


class Other(Task):
    """A node that runs in a way of its own."""

    def __call__(self, values=()):
        return "other"


@pytest.mark.parametrize(
    "node",
    [
        Other("t", show),
        Task("t", show, Other(None, show)),
        Task("t", show, Dict({"a": TaskRef("x")})),
        Alias("x"),
        TupleTask((show, ["x"]), frozenset({"x"})),
        TupleTask((show, (add, "x", 1)), frozenset({"x"})),
        TupleTask(["x"], frozenset({"x"})),
    ],
)
def test_what_is_more_than_calls_goes_as_it_is(node):
    assert Calls().parts(node, ["x"]) is None


def test_a_task_that_changes_its_arguments_changes_them_for_itself():
    node = Task("t", append, [1], TaskRef("x"))
    assert [as_worker(node, {"x": 2}) for _ in range(2)] == [[1, 2], [1, 2]]
