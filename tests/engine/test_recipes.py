"""A recipe does what the node does that it was read from; where that is not certain, there is none."""

import functools
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
from dask._task_spec import Alias, DataNode, Dict, GraphNode, List, Set, Task, TaskRef, Tuple
from hypothesis import given
from hypothesis import strategies as st

from graphmill.engine.known import is_constant
from graphmill.engine.recipes import Recipes, is_plain
from graphmill.errors import EncodeError
from graphmill.workers.recipe import follow

NAMES = ("a", ("b", 0), 2)


class Value:
    """Equal to nothing but itself, so that results show which value they were made of."""


VALUES = {name: Value() for name in NAMES}


def called(*args, **kwargs):
    return "called", args, kwargs


def called_as_well(*args, **kwargs):
    return "called as well", args, kwargs


def mark(sort, *args):
    return sort, args


class Cook:
    """Reads nodes, and keeps recipes by number."""

    def __init__(self):
        self.made = {}
        self.recipes = Recipes(self._pack)

    def _pack(self, recipe):
        number = len(self.made) + 1
        self.made[number] = recipe
        return number, (number,)

    def read(self, node):
        """Read a node; the first of a form has no recipe, and what it calls may be shared from then on."""
        for _ in range(3):
            call = self.recipes.read(node)
        return call

    def run(self, call, values):
        recipe = self.made[call.recipe]
        return follow(recipe.steps, [*[values[key] for key in call.keys], *call.leaves, *recipe.constants])


def references():
    return st.sampled_from(NAMES).flatmap(lambda name: st.sampled_from([TaskRef(name), Alias(name)]))


def data():
    plain = st.one_of(
        st.none(), st.integers(), st.text(max_size=3), st.just(slice(1, None)), st.just((0, ("x",)))
    )
    other = st.sampled_from(
        [[1, 2], {"x": 1}, len, np.dtype("f4"), functools.partial(max, 1), frozenset({1})]
    )
    return st.one_of(plain, other)


def calls(arguments):
    kwargs = st.dictionaries(st.sampled_from(["p", "q", "typ"]), arguments, max_size=2)
    functions = st.sampled_from([called, called_as_well, functools.partial(called, 5)])
    make = lambda function, args, kwargs: Task(None, function, *args, **kwargs)  # noqa: E731
    return st.builds(make, functions, st.lists(arguments, max_size=3), kwargs)


def fused():
    """Tasks that Dask has fused: each needs some of those before it, and inputs; the last needs the rest."""

    def build(choices):
        tasks = []
        for number, names in enumerate(choices):
            inner = [TaskRef(("t", at % number)) for at in names if number and isinstance(at, int)]
            outer = [TaskRef(NAMES[at]) if isinstance(at, int) else at for at in names]
            tasks.append(Task(("t", number), mark, number, *inner, *outer))
        needed = {dep for task in tasks for dep in task.dependencies}
        rest = [TaskRef(task.key) for task in tasks if task.key not in needed]
        return GraphNode.fuse(*tasks, Task(("t", "last"), mark, "last", *rest))

    names = st.lists(st.one_of(st.integers(0, 2), st.just([0])), max_size=3)
    return st.lists(names, min_size=1, max_size=5).map(build)


def containers(arguments):
    lists = st.lists(arguments, min_size=2, max_size=3)
    return st.one_of(
        lists.map(lambda items: List(*items)),
        lists.map(lambda items: Tuple(*items)),
        st.lists(references(), min_size=2, max_size=3).map(lambda items: Set(*items)),
        st.dictionaries(st.sampled_from("xyz"), arguments, min_size=1, max_size=3).map(Dict),
    )


ARGUMENTS = st.recursive(
    st.one_of(references(), data(), data().map(lambda value: DataNode(None, value))),
    lambda arguments: st.one_of(calls(arguments), containers(arguments)),
    max_leaves=12,
)


@given(st.one_of(calls(ARGUMENTS), containers(ARGUMENTS), fused(), calls(fused())))
def test_recipes_do_what_nodes_do(node):
    cook = Cook()
    call = cook.read(node)
    assert call is not None
    assert set(call.keys) == node.dependencies
    assert cook.run(call, VALUES) == node(VALUES)


def test_nothing_is_in_a_recipe_that_tasks_could_change():
    numbers = [1, 2]
    cook = Cook()
    node = Task(
        "x", called, numbers, DataNode("y", numbers), functools.partial(called, numbers), numbers.append
    )
    call = cook.read(node)
    assert cook.made[call.recipe].constants == (called,)
    assert (call.leaves[0], call.is_plain) == (numbers, False)


def test_tasks_of_one_form_have_one_recipe():
    cook = Cook()
    nodes = [Task(("x", i), called, List(TaskRef(("y", i)), TaskRef("z")), i, axis=(0, i)) for i in range(5)]
    read = [cook.recipes.read(node) for node in nodes]
    assert read[0] is None  # there might have been no other
    assert [call.recipe for call in read[3:]] == [1, 1]
    assert read[3].keys == (("y", 3), "z")
    assert (read[3].leaves, read[3].is_plain) == ((3, (0, 3)), True)


@pytest.mark.parametrize(
    "node",
    [
        Alias("x", "y"),
        DataNode("x", 1),
        type("Own", (Task,), {})("x", called),
        Task("x", called, type("Own", (Task,), {})("y", called)),
        Task("x", called, type("Future", (TaskRef,), {})("y")),
        Task("x", called, type("Future", (), {"__dask_future__": True, "key": "y"})()),
        (called, 1),
    ],
)
def test_what_is_not_known_has_no_recipe(node):
    assert Cook().read(node) is None


def test_fused_tasks_that_do_not_add_up_have_none():
    fused = Task.fuse(Task("x", called, TaskRef("a")), Task("y", called, TaskRef("x")))
    function, (tasks, result, inputs, *values) = fused.func, fused.args
    extra, circle = {**tasks, "z": Task("z", called)}, {"y": Task("y", called, TaskRef("y"))}
    for wrong in [
        (extra, result, inputs, *values),
        (tasks, result, (), *values),
        (tasks, "no such task", inputs, *values),
        (
            circle,
            "y",
            (),
        ),
        (tasks, "a", inputs, *values),
        (tasks, result, {"a": None}, *values),
    ]:
        assert Cook().read(Task("w", function, *wrong)) is None


def test_results_within_a_fused_task_are_let_go_of_when_they_were_used():
    alive = []

    def begin():
        value = Value()
        alive.append(weakref.ref(value))
        return value

    def use(value):
        return alive[0]() is value

    def end(was_there):
        return was_there, alive[0]()

    cook = Cook()
    call = cook.read(Task.fuse(Task("x", begin), Task("y", use, TaskRef("x")), Task("z", end, TaskRef("y"))))
    assert cook.run(call, {}) == (True, None)


def test_what_cannot_be_packed_has_no_recipe():
    def refuse(_recipe):
        raise EncodeError("no")

    recipes = Recipes(refuse)
    assert [recipes.read(Task("x", called)) for _ in range(3)] == [None] * 3


def test_large_values_are_no_part_of_a_message():
    assert is_plain(("x", 1, b"y", slice(0, None)))
    assert not any(map(is_plain, ["x" * 10_000, tuple(range(1_000)), ([],), slice([])]))
    assert not Cook().read(Task("x", called, *range(1_000))).is_plain


def test_what_tasks_do_not_share_is_not_kept():
    held = Value()
    there = weakref.ref(held)
    cook = Cook()
    assert not cook.read(Task("x", called, held)).is_plain
    del held
    assert there() is None


def test_methods_of_what_may_change_are_no_constants():
    assert is_constant(len)
    assert is_constant(np.array)
    assert not is_constant([].append)


def test_all_of_a_graph_of_dask_array_has_recipes():
    x = da.ones((40, 40), chunks=(10, 10))
    (y,) = dask.optimize((x + x.T).sum() - x[5:, ::2].mean())
    cook = Cook()
    nodes = [node for node in dict(y.__dask_graph__()).values() if isinstance(node, Task)]
    assert len(nodes) > 30
    assert all(cook.read(node) for node in nodes)
    assert len(cook.made) < 20
