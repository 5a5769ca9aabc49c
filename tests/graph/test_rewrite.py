"""Rewriting must change what is run, and never what comes out."""

import pickle
from collections import Counter
from functools import partial
from typing import Any, ClassVar, NamedTuple

import pytest
from dask import optimization
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmill.errors import CycleError, GraphError, MissingKeyError
from graphmill.graph import cull, fuse, get_dependencies, inline, inline_functions, read_graph
from graphmill.graph.rewrite import MAX_CALLS, MAX_DEPTH, ChainedTask, default_renamer
from graphmill.local import get_sync


class Pair(NamedTuple):
    left: Any
    right: Any


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def double(x):
    return x * 2


def join(*args, **kwargs):
    """Something that every argument, its type and its place leave a trace in."""
    return ("joined", repr(args), repr(sorted(kwargs.items())))


def nesting(task):
    return 1 + max(map(nesting, task)) if isinstance(task, tuple) else 0


class TestCull:
    def test_keeps_what_is_needed(self):
        dsk = {"x": 1, "y": (inc, "x"), "out": (add, "x", 10)}
        assert cull(dsk, "out") == ({"x": 1, "out": (add, "x", 10)}, {"x": [], "out": ["x"]})
        assert cull(dsk, ["out", ["y"]])[0] == dsk
        assert cull(dsk, [])[0] == {}

    def test_names_a_dependency_as_often_as_it_is_used(self):
        assert cull({"x": 1, "y": (add, "x", "x")}, {"y"})[1] == {"x": [], "y": ["x", "x"]}

    def test_tuple_keys(self):
        dsk = {("x", 0): 1, ("x", 1): 2, ("y", 0): (inc, ("x", 0))}
        assert list(cull(dsk, ("y", 0))[0]) == [("x", 0), ("y", 0)]

    def test_says_what_is_missing(self):
        with pytest.raises(MissingKeyError, match="'z'"):
            cull({"x": 1}, "z")
        with pytest.raises(GraphError, match="'y' needs it"):
            cull({"y": Task("y", inc, TaskRef("x"))}, "y")


class TestFuse:
    def test_a_chain_becomes_one_task(self):
        dsk = {"a": 1, "b": (inc, "a"), "c": (inc, "b")}
        assert fuse(dsk) == ({"c": (inc, (inc, 1))}, {"c": set()})

    def test_keys_asked_for_stay(self):
        dsk = {"a": 1, "b": (inc, "a"), "c": (inc, "b")}
        expected = ({"b": (inc, 1), "c": (inc, "b")}, {"b": set(), "c": {"b"}})
        assert fuse(dsk, keys=["b"]) == expected
        assert fuse(dsk, keys="b", dependencies=cull(dsk, "c")[1]) == expected

    def test_branches_are_not_chains(self):
        dsk = {"a": [1], "b": (inc, "a"), "c": (inc, "b"), "d": (inc, "b"), "e": (add, "c", "d")}
        assert fuse(dsk)[0] == dsk

    def test_a_chain_may_begin_with_many_dependencies_and_end_with_many_dependents(self):
        dsk = {"a": [1], "b": [2], "c": (add, "a", "b"), "d": (len, "c")}
        dsk |= {"e": (inc, "d"), "f": (double, "d")}
        fused, dependencies = fuse(dsk)
        assert fused == {
            "a": [1],
            "b": [2],
            "d": (len, (add, "a", "b")),
            "e": (inc, "d"),
            "f": (double, "d"),
        }
        assert dependencies == {"a": set(), "b": set(), "d": {"a", "b"}, "e": {"d"}, "f": {"d"}}

    @pytest.mark.parametrize("dependencies", [None, {"a": set(), "b": {"a"}, "c": {"b"}}])
    def test_what_is_used_twice_is_computed_once(self, dependencies):
        dsk = {"a": [1], "b": (len, "a"), "c": (add, "b", "b")}
        assert fuse(dsk, dependencies=dependencies)[0] == dsk

    def test_long_chains_are_cut(self):
        dsk = {0.5: 0} | {("x", i): (inc, ("x", i - 1) if i else 0.5) for i in range(10_000)}
        fused, dependencies = fuse(dsk)
        depths = [nesting(task) for task in fused.values()]
        assert len(fused) == 10_000 / MAX_DEPTH
        assert max(depths) <= MAX_DEPTH + 1  # the innermost tuple is a key
        assert fused.keys() == dependencies.keys()
        assert get_sync(fused, ("x", 9_999)) == 10_000
        assert fuse(fused)[0] == fused

    def test_long_chains_of_nodes_do_not_recurse(self):
        dsk = {"x0": (inc, 0)} | {f"x{i}": Task(f"x{i}", inc, TaskRef(f"x{i - 1}")) for i in range(1, 10_000)}
        fused, dependencies = fuse(dsk)
        assert list(fused) == ["x9999"]
        assert dependencies == {"x9999": set()}
        assert get_sync(pickle.loads(pickle.dumps(fused)), "x9999") == 10_000

    def test_every_kind_of_node(self):
        dsk = {
            "data": DataNode("data", [3, 1]),
            "alias": Alias("alias", "data"),
            "sorted": Task("sorted", sorted, Alias("alias"), reverse=True),
            "list": List(TaskRef("sorted"), 5),
            "dict": Task("dict", dict, Dict({"k": Alias("list")})),
            "tuple": (join, ["dict", {"v": "dict2"}]),
            "dict2": (dict, []),
        }
        expected = get_sync(dsk, "tuple")
        fused, dependencies = fuse(dsk)
        assert dependencies == {
            "data": set(),
            "dict2": set(),
            "tuple": {"dict", "dict2"},
            "dict": {"data"},
        }
        assert get_sync(fused, "tuple") == expected

    def test_cycles_are_left_for_the_run_to_complain_about(self):
        dsk = {"a": (inc, "b"), "b": (inc, "a"), "c": "c"}
        assert fuse(dsk)[0] == dsk

    def test_nodes_that_must_stay_alone(self):
        class Barrier(Task):
            __slots__ = ()
            block_fusion = True

        dsk = {"a": (len, [[1]]), "b": Barrier("b", inc, TaskRef("a")), "c": (inc, "b")}
        assert list(fuse(dsk)[0]) == ["a", "b", "c"]

    def test_renaming(self):
        dsk = {"load": (len, []), "inc-0a1b2c3d": (inc, "load"), "out": (inc, "inc-0a1b2c3d")}
        fused, dependencies = fuse(dsk, rename_keys=True)
        assert fused["out"] == "inc-load-out"
        assert dependencies == {"out": {"inc-load-out"}, "inc-load-out": set()}
        assert get_sync(fused, "out") == 2
        assert sorted(fuse(dsk, rename_keys="+".join)[0]) == ["load+inc-0a1b2c3d+out", "out"]
        assert list(fuse(dsk, rename_keys=lambda keys: None)[0]) == ["out"]

    def test_names(self):
        assert default_renamer(["x", 1]) is None
        assert default_renamer([1, ("y", 2)]) == ("y", 2)
        assert len(default_renamer(["x" * 100, "y" * 100])) == 120


class TestInline:
    def test_constants(self):
        dsk = {"x": 1, "y": (inc, "x"), "z": (add, "x", "y")}
        assert inline(dsk) == {"x": 1, "y": (inc, 1), "z": (add, 1, "y")}

    def test_keys(self):
        dsk = {"x": 1, "y": (inc, "x"), "z": (add, "x", "y")}
        assert inline(dsk, keys="y") == {"x": 1, "y": (inc, 1), "z": (add, 1, (inc, 1))}
        expected = {"x": 1, "y": (inc, "x"), "z": (add, "x", (inc, "x"))}
        assert inline(dsk, keys={"y", "?"}, inline_constants=False) == expected
        dependencies = cull(dsk, "z")[1]
        assert inline(dsk, ["y"], inline_constants=False, dependencies=dependencies) == expected

    def test_does_not_touch_the_keys_it_was_given(self):
        keys = {"y"}
        inline({"x": 1, "y": (inc, "x")}, keys)
        assert keys == {"y"}

    def test_at_any_depth(self):
        dsk = {"x": 1, ("k", 0): 2}
        dsk["y"] = (join, ["x", {"x": {("k", 0)}}], ("x", [("k", 0)]), Pair("x", 0), frozenset("x"))
        expected = (join, [1, {"x": {2}}], (1, [2]), Pair(1, 0), frozenset({1}))
        assert inline(dsk)["y"] == expected
        assert type(inline(dsk)["y"][3]) is Pair

    def test_keys_that_stand_for_each_other(self):
        with pytest.raises(CycleError):
            inline({"a": (inc, "b"), "b": (inc, "a")}, keys=["a", "b"])

    @pytest.mark.parametrize(
        "dsk",
        [
            {"f": len, "y": (join, ("f", "z")), "z": [1]},
            {"f": 0, "y": (join, ("k", "f")), ("k", 0): "key"},
            {"f": [0], "y": (len, {"f2", "g"}), "f2": (inc, 1), "g": (inc, True)},
            {"f": {"a": 1}, "y": (len, ["f"]), "z": (join, Pair("f", "f"))},
            {"f": DataNode("f", "z"), "y": (join, "f"), "z": (join, ["f", "f"])},
            {"f": DataNode("f", (len, "z")), "y": Task("y", join, TaskRef("f")), "z": "f"},
            {
                "f": 3,
                "y": Task("y", join, TaskRef("f"), k=List(TaskRef("f"), TaskRef("z"))),
                "z": 4,
            },
            {"f": Task("f", inc, 3), "y": ("f", "f"), "z": Alias("z", "f")},
            {"f": "z", "y": Task("y", join, TaskRef("f")), "z": (inc, 1)},
        ],
    )
    def test_means_the_same(self, dsk):
        keys = list(dsk)
        before = get_sync(dsk, keys)
        assert get_sync(inline(dsk, keys), keys) == before
        assert get_sync(inline(dsk), keys) == before

    def test_sets_whose_items_turn_out_unhashable_or_alike(self):
        dsk = {"a": (len, [[0]]), "b": (inc, "a"), "c": (inc, 1), "d": (join, {"b", "c", "t"})}
        dsk |= {"t": Task("t", inc, List(1).args[0]), "e": (frozenset, [frozenset(["b", "t"])])}
        assert get_sync(inline(dsk, list(dsk)), ["d", "e"]) == get_sync(dsk, ["d", "e"])


class TestInlineFunctions:
    dsk: ClassVar = {"out": (add, "i", "d"), "i": (inc, "x"), "d": (double, "y"), "x": 1, "y": 1}

    def test_cheap_functions(self):
        assert inline_functions(self.dsk, [], [inc]) == {
            "out": (add, (inc, "x"), "d"),
            "d": (double, "y"),
            "x": 1,
            "y": 1,
        }

    def test_outputs_stay(self):
        expected = {"out": (add, "i", (double, "y")), "i": (inc, "x"), "x": 1, "y": 1}
        assert inline_functions(self.dsk, ["i", "out"], [inc, double]) == expected
        assert inline_functions(self.dsk, ("i", "out"), [inc, double]) == expected

    def test_constants(self):
        result = inline_functions(self.dsk, ["out"], [inc], inline_constants=True)
        assert result == {"out": (add, (inc, 1), "d"), "d": (double, 1), "x": 1, "y": 1}

    def test_nothing_to_do(self):
        assert inline_functions(self.dsk, ["out"]) is self.dsk
        assert inline_functions(self.dsk, ["out"], [len]) is self.dsk

    def test_all_functions_of_a_task_must_be_cheap(self):
        dsk = {"x": 1, "a": (inc, (double, "x")), "b": (inc, [(double, "x")]), "c": (add, "a", "b")}
        assert inline_functions(dsk, ["c"], [inc]) is dsk
        assert set(inline_functions(dsk, ["c"], [inc, double])) == {"x", "c"}

    def test_partial_functions(self):
        dsk = {"x": 1, "a": (partial(partial(add), 1), "x"), "b": (inc, "a")}
        assert set(inline_functions(dsk, ["b"], [add])) == {"x", "b"}

    def test_functions_without_a_hash(self):
        class Odd:
            __hash__ = None

            def __call__(self, x):
                return x

        dsk = {"x": 1, "a": (Odd(), "x"), "b": (inc, "a")}
        assert inline_functions(dsk, ["b"], [add]) is dsk

    def test_nodes(self):
        dsk = {
            "x": DataNode("x", 1),
            "a": Task("a", inc, TaskRef("x")),
            "b": (add, "a", "x"),
            "c": Task("c", join, List(TaskRef("a"), Task(None, double, TaskRef("b"))), k=Alias("a")),
            "d": (join, ["c", Task("d2", double, TaskRef("a"))]),
        }
        before = get_sync(dsk, ["c", "d"])
        for fast, left in (([inc], "xbcd"), ([inc, add], "xcd"), ([inc, add, double, join], "xd")):
            result = inline_functions(dsk, "d", fast)
            assert set(result) == set(left)
            assert get_sync(result, "d") == before[1]
        again = inline_functions(inline_functions(dsk, ["c", "d"], [inc]), ["c", "d"], [inc, add])
        assert get_sync(again, ["c", "d"]) == before

    def test_rewriting_what_was_rewritten(self):
        dsk = {"x": [1], "a": Task("a", len, TaskRef("x")), "b": Task("b", inc, TaskRef("a"))}
        dsk |= {"c": (inc, "b"), "d": (add, "c", "c")}
        fused, _ = fuse(dsk)
        assert set(inline_functions(fused, ["d"], [len, inc])) == {"x", "d"}
        assert set(inline_functions(fused, ["d"], [len])) == {"x", "c", "d"}
        graph = read_graph(dsk)
        assert set(inline_functions(graph.tasks, ["d"], [inc])) == {"a", "d"}

    def test_what_has_become_expensive_is_stored(self):
        dsk = {"x0": (len, [])} | {f"x{i}": (add, f"x{i - 1}", f"x{i - 1}") for i in range(1, 200)}
        result = inline_functions(dsk, ["x199"], [add])
        assert 2 < len(result) < 100
        assert get_sync(result, "x199") == 0
        chain = {"x0": (len, [])} | {f"x{i}": (inc, f"x{i - 1}") for i in range(1, 5_000)}
        result = inline_functions(chain, ["x4999"], [inc])
        assert max(map(nesting, result.values())) <= MAX_CALLS + 1
        assert get_sync(result, "x4999") == 4999


class TestChainedTask:
    def test_lets_go_of_what_it_needs_no_more(self):
        alive = Counter()

        class Value:
            def __init__(self, *_):
                alive["now"] += 1
                alive["most"] = max(alive["most"], alive["now"])

            def __del__(self):
                alive["now"] -= 1

        dsk = {"x0": Task("x0", Value)}
        dsk |= {f"x{i}": Task(f"x{i}", Value, TaskRef(f"x{i - 1}")) for i in range(1, 20)}
        fused, _ = fuse(dsk)
        get_sync(fused, "x19")
        assert alive["most"] == 2

    def test_its_own_keys_hide_those_of_the_graph(self):
        inner = Task("x", inc, TaskRef("x"))
        task = ChainedTask([("x", inner)], Task("y", double, TaskRef("x")))
        assert task.dependencies == {"x"}
        assert task({"x": 1}) == 4
        assert get_sync({"x": 1, "y": task, "z": (add, "x", "y")}, "z") == 5

    def test_travels(self):
        task = ChainedTask([("x", Task("x", inc, TaskRef("w")))], Task("y", inc, TaskRef("x")))
        assert pickle.loads(pickle.dumps(task))({"w": 1}) == 3
        assert repr(task).startswith("ChainedTask(")


# ---- any graph at all


def name(i):
    return f"k{i}" if i % 2 else ("k", i)


@st.composite
def specs(draw, names, depth=2):
    """A tuple task, a container, a key or data that refers to some of the names."""
    leaves = ["leaf", "data", "node"] if names else ["data"]
    what = draw(st.sampled_from(leaves + (["task", "list", "tuple", "dict", "pair"] * (depth > 0))))
    if what == "leaf":
        return draw(st.sampled_from(names))
    if what == "data":
        return draw(st.sampled_from([0, 1, True, "text", None, 2.5, b"b", len]))
    if what == "node":
        return draw(nodes(names, depth))
    items = draw(st.lists(specs(names, depth - 1), max_size=3))
    if what == "task":
        return (draw(st.sampled_from([join, partial(join)])), *items)
    if what == "tuple":
        return (0, *items)
    if what == "pair":
        return Pair(items, (0, *items[:1]))
    return items if what == "list" else dict(enumerate(items))


@st.composite
def nodes(draw, names, depth=2, key="inner"):
    what = draw(st.sampled_from(["task", "alias", "data", "list"] if names else ["data"]))
    if what == "data":
        return DataNode(key, draw(st.sampled_from([1, "k1", ("k", 0), (len, "k1"), [2]])))
    refs = st.sampled_from(names).map(TaskRef)
    if what == "alias":
        return Alias(key, draw(st.sampled_from(names)))
    inner = refs | st.integers(0, 3) | (nodes(names, depth - 1) if depth > 0 else refs)
    args = draw(st.lists(inner, max_size=3))
    if what == "list":
        return List(*args)
    function = draw(st.sampled_from([join, partial(join)]))
    return Task(key, function, *args, **({"k": draw(inner)} if draw(st.booleans()) else {}))


@st.composite
def graphs(draw):
    dsk = {}
    for i in range(draw(st.integers(1, 9))):
        # Few of the latest names make long chains; many make branches.
        names = list(dsk)[-draw(st.sampled_from([1, 1, 2, 9])) :]
        key = name(i)
        dsk[key] = draw(
            specs(names) | nodes(names, key=key) | st.sampled_from(names or [0]).map(lambda n: (join, n))
        )
    items = draw(st.permutations(list(dsk.items())))
    return dict(items), draw(st.sets(st.sampled_from(list(dsk)), min_size=1).map(sorted_keys))


def sorted_keys(keys):
    return sorted(keys, key=str)


def written(value):
    """Write down all of a graph; repr() leaves things out of nodes, and pickle has their memos."""
    if isinstance(value, DataNode | Alias):
        return [type(value), value.key, repr(value)]
    if isinstance(value, Task):
        return [type(value), value.func, written(value.args), written(value.kwargs)]
    if isinstance(value, dict):
        return [(key, written(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [type(value), *map(written, value)]
    return repr(value)


def check(before, keys, after, image):
    assert written(before) == image, "the graph that was given has changed"
    assert repr(get_sync(after, keys)) == repr(get_sync(before, keys))


@settings(max_examples=300, deadline=None)
@given(graphs(), st.data())
def test_rewriting_never_changes_results(graph, data):
    dsk, keys = graph
    image = written(dsk)
    culled, dependencies = cull(dsk, keys)
    assert set(culled) == set(read_graph(dsk, keys).dependencies) == set(dependencies)
    assert all(set(deps) == get_dependencies(dsk, key) for key, deps in dependencies.items())
    check(dsk, keys, culled, image)

    some = data.draw(st.lists(st.sampled_from(list(dsk))))
    for rename in (False, True):
        for given_graph, deps in ((dsk, None), (culled, dependencies)):
            fused, needs = fuse(given_graph, keys, deps, rename_keys=rename)
            assert needs == {key: get_dependencies(fused, key) for key in fused}
            check(dsk, keys, fused, image)
    check(dsk, keys, inline(dsk, some), image)
    check(dsk, keys, inline(culled, keys, inline_constants=False, dependencies=dependencies), image)
    for constants in (False, True):
        cheap = inline_functions(culled, keys, [join], constants, dependencies)
        check(dsk, keys, cheap, image)
        check(dsk, keys, fuse(inline(cheap), keys)[0], image)
        check(dsk, keys, inline_functions(fused, keys, [join], constants), image)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), max_size=2), min_size=1, max_size=12), st.data())
def test_flat_tuple_graphs_come_out_as_dask_has_them(shape, data):
    dsk = {
        f"k{i}": (join, *[f"k{ref % i}" for ref in refs]) if i and refs else i for i, refs in enumerate(shape)
    }
    keys = data.draw(st.lists(st.sampled_from(list(dsk)), unique=True))
    culled, dependencies = cull(dsk, keys)
    theirs, their_dependencies = optimization.cull(dsk, keys)
    assert culled == theirs
    assert {key: sorted(deps) for key, deps in dependencies.items()} == {
        key: sorted(deps) for key, deps in their_dependencies.items()
    }
    assert inline(dsk, keys) == optimization.inline(dsk, keys)
    assert inline_functions(dsk, keys, [join]) == optimization.inline_functions(dsk, keys, [join])
    assert fuse(dsk, keys) == optimization.fuse_linear(dsk, keys, rename_keys=False)
