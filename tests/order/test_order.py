"""Tests of static order: any graph gets a right one, and the bookkeeping behind it is exact."""

from __future__ import annotations

from operator import add

import pytest
from dask._task_spec import Alias, Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from graphmill.errors import CycleError
from graphmill.graph import read_graph
from graphmill.order import measure_order, order, order_graph, sortkey
from graphmill.order.depth_first import order_depth_first
from graphmill.order.guess import ROOT, guess_sizes
from graphmill.order.index import Index, index_graph
from graphmill.order.release import ReleaseOrder, usual_reach
from graphmill.order.replay import is_in_order, peak_of


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    """Random graphs with random sizes, some of whose tasks are results."""
    count = draw(st.integers(1, 24))
    deps = [sorted(draw(st.sets(st.integers(0, i - 1), max_size=4))) if i else [] for i in range(count)]
    users: list[list[int]] = [[] for _ in range(count)]
    for i, of in enumerate(deps):
        for d in of:
            users[d].append(i)
    sizes = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    asked_for = draw(st.sets(st.integers(0, count - 1)))
    kept = [1 if not of or i in asked_for else 0 for i, of in enumerate(users)]
    return Index(list(range(count)), deps, users, sizes, kept)


class Checked(ReleaseOrder):
    """Works every plan out anew before each decision, and compares."""

    decisions = 0

    def _best_plan(self) -> list[int] | None:
        found = super()._best_plan()
        grown = {}
        for block, plan in enumerate(self._plan):
            if self._held[block] and plan:
                left = [i for i in plan if not self._done[i]]
                assert set(left) == self._still_needed(block), "a plan is what is left of it"
                live = peak = 0
                used: dict[int, int] = {}
                for i in left:
                    live += self._sizes[i]
                    peak = max(peak, live)
                    for d in self._deps[i]:
                        used[d] = used.get(d, 0) + 1
                        if used[d] == self._holders[d]:
                            live -= self._sizes[d]
                assert self._growth[block] == live, "growth follows from what has happened"
                grown[block] = (0, peak, live) if live <= 0 else (1, live, peak)
        if found:
            chosen = next(block for block in grown if self._plan[block] is found)
            assert grown[chosen] == min(grown.values()), "the best plan is chosen"
            self.decisions += 1
        return found

    def _still_needed(self, block: int) -> set[int]:
        needed = {user for user in self._users[block] if not self._done[user]}
        stack = list(needed)
        while stack:
            for d in self._deps[stack.pop()]:
                if not self._done[d] and d not in needed:
                    needed.add(d)
                    stack.append(d)
        return needed


@given(indexes(), st.integers(1, 12))
def test_bookkeeping_of_plans_is_exact(index: Index, reach: int) -> None:
    rank = list(range(len(index.keys)))
    sequence = Checked(index, rank, reach).run()
    assert sorted(sequence) == rank
    assert is_in_order(index, sequence)


def test_the_check_of_plans_decides_something() -> None:
    # A fork whose branches join again: the property above would hold if no plan were ever made.
    index = Index([0, 1, 2, 3], [[], [0], [0], [1, 2]], [[1, 2], [3], [3], []], [4, 1, 1, 1], [0, 0, 0, 1])
    checked = Checked(index, [0, 1, 2, 3], 5)
    assert checked.run() == [0, 1, 2, 3]
    assert checked.decisions >= 1


@given(indexes())
def test_depth_first_order_is_an_order(index: Index) -> None:
    sequence = order_depth_first(index)
    assert sorted(sequence) == list(range(len(index.keys)))
    assert is_in_order(index, sequence)


def test_inputs_are_finished_before_others_are_begun() -> None:
    # Two inputs, each cut into pieces that four results need: as `dask.order` would finish results, it holds
    # both inputs and all pieces; to finish inputs costs one at a time.
    dsk: dict = {}
    for source in "ab":
        dsk[source] = (add, 1, 2)
        for i in range(4):
            dsk[source, i] = (add, source, i)
    for i in range(4):
        dsk["result", i] = (add, ("a", i), ("b", i))
    sizes = {key: 100 if key in ("a", "b") else 1 for key in dsk}
    ranks = order(dsk, sizes)
    first, second = sorted("ab", key=ranks.__getitem__)
    assert all(ranks[first, i] < ranks[second] for i in range(4))
    assert order_graph(read_graph(dsk), sizes).peak <= 100 + 4 + 4


@pytest.mark.parametrize("sizes", [None, {"x": 5}])
def test_order_of_keys_of_mixed_types(sizes: dict | None) -> None:
    dsk = {
        "x": (add, 1, 2),
        ("x", 0): (add, "x", 1),
        7: (add, ("x", 0), 1),
        b"b": (add, 7, 1),
        2.5: (add, b"b", 1),
    }
    assert sorted(dsk, key=order(dsk, sizes).__getitem__) == ["x", ("x", 0), 7, b"b", 2.5]
    assert sortkey("Hello") == ("str", "Hello")
    assert sortkey(("x", 1)) == ("tuple", ("x", 1))


@given(st.integers(0, 2**32))
def test_order_does_not_depend_on_the_order_of_sets(seed: int) -> None:
    names = [f"{seed}-{i}" for i in range(12)]
    dsk: dict = {name: (add, 1, i) for i, name in enumerate(names)}
    dsk |= {("sum", i): (sum, [names[i], names[i + 1], names[(i * 5) % 12]]) for i in range(11)}
    ranks = order(dsk)
    plain = {name: f"n{i:02}" for i, name in enumerate(names)}
    renamed = order({plain.get(k, k): _rename(v, plain) for k, v in dsk.items()})
    assert [renamed[plain.get(k, k)] for k in dsk] == [ranks[k] for k in dsk]


def _rename(value: object, names: dict) -> object:
    if isinstance(value, tuple | list):
        return type(value)(_rename(item, names) for item in value)
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("count", [3, 2_500, 6_000, 16_000])
def test_each_effort_gives_an_order(count: int) -> None:
    dsk: dict = {("x", i): (add, 1, i) for i in range(count // 2)}
    dsk |= {("y", i): (add, ("x", i), ("x", max(0, i - 1))) for i in range(count // 2)}
    graph = read_graph(dsk)
    found = order_graph(graph)
    index = index_graph(graph)
    assert is_in_order(index, sorted(range(len(dsk)), key=lambda i: found.priorities[index.keys[i]]))
    assert sorted(found.priorities.values()) == list(range(len(dsk)))


@pytest.mark.parametrize("count", [3, 16_001])
def test_a_cycle_is_named(count: int) -> None:
    dsk: dict = {i: (add, i - 1, 1) for i in range(1, count)} | {0: (add, count - 1, 1)}
    with pytest.raises(CycleError, match=r"1"):
        order(dsk)


class TestAliases:
    def test_an_alias_weighs_nothing_and_holds_its_source(self) -> None:
        dsk = {
            "x": Task("x", add, 1, 2),
            "alias": Alias("alias", "x"),
            "again": Alias("again", "alias"),
            "y": Task("y", abs, TaskRef("again")),
        }
        graph = read_graph(dsk)
        assert graph.sources() == {"alias": "x", "again": "x"}
        index = index_graph(graph, dict.fromkeys(dsk, 10))
        index.hold_sources()
        number = {key: i for i, key in enumerate(index.keys)}
        assert [index.sizes[number[key]] for key in ("x", "alias", "again", "y")] == [10, 0, 0, 10]
        assert number["x"] in index.deps[number["y"]]
        assert peak_of(index, [number[key] for key in ("x", "alias", "again", "y")]) == 20

    def test_an_asked_for_alias_keeps_its_source(self) -> None:
        dsk = {"x": Task("x", add, 1, 2), "alias": Alias("alias", "x"), "y": Task("y", abs, TaskRef("x"))}
        index = index_graph(read_graph(dsk), None, ["alias", "y"])
        index.hold_sources()
        assert index.kept[index.keys.index("x")] == 1


class TestGuess:
    def test_edges_next_to_a_whole_block_are_small(self) -> None:
        dsk: dict = {name: Task(name, add, 1, 2) for name in "ab"}
        for name in "ab":
            dsk["whole", name] = Alias(("whole", name), name)
            dsk["edge", name] = Task(("edge", name), abs, TaskRef(name))
        dsk["y"] = Task("y", add, TaskRef(("whole", "a")), TaskRef(("edge", "b")))
        dsk["z"] = Task("z", add, TaskRef(("whole", "b")), TaskRef(("edge", "a")))
        dsk["result"] = Task("result", add, TaskRef("y"), TaskRef("z"))
        sizes = self._guess(dsk)
        assert (sizes["a"], sizes["whole", "a"], sizes["edge", "a"]) == (ROOT, ROOT, ROOT // 20)

    def test_pieces_weigh_their_share(self) -> None:
        dsk: dict = {"x": (add, 1, 2)} | {("piece", i): (abs, "x") for i in range(4)}
        for i in range(4):
            dsk |= {("y", i): (add, ("piece", i), 1), ("z", i): (abs, ("y", i))}
        sizes = self._guess(dsk)
        assert [sizes["piece", i] for i in range(4)] == [ROOT // 4] * 4

    @staticmethod
    def _guess(dsk: dict) -> dict:
        index = index_graph(read_graph(dsk))
        return dict(zip(index.keys, guess_sizes(index, order_depth_first(index)), strict=True))


def test_a_budget_for_more_workers_is_larger() -> None:
    dsk: dict = {("x", i): (add, 1, i) for i in range(8)} | {"sum": (sum, [("x", i) for i in range(8)])}
    sizes = {key: 10 if key != "sum" else 1 for key in dsk}
    found = order_graph(read_graph(dsk), sizes)
    assert (found.peak, found.largest_root, found.largest_task) == (81, 10, 81)
    assert found.budget(1) == 81
    assert found.budget(2) == max(91, 2 * 81 * 7 // 8)
    again = measure_order(read_graph(dsk), found.priorities, dict.fromkeys(dsk, 1))
    assert (again.peak, again.largest_root) == (9, 1)


def _stars(points: int) -> Index:
    """Roots whose one user needs so many other tasks."""
    dsk: dict = {}
    for i in range(30):
        dsk["x", i] = (add, 1, i)
        dsk |= {("p", i, j): (abs, ("x", i)) for j in range(points)}
        dsk["y", i] = (sum, [("p", i, j) for j in range(points)])
        dsk["z", i] = (add, ("y", i), ("x", i))
    return index_graph(read_graph(dsk))


@pytest.mark.parametrize(("points", "reach"), [(2, 5), (40, 52), (200, 0)])
def test_plans_reach_as_far_as_blocks_of_the_graph_need(points: int, reach: int) -> None:
    assert usual_reach(_stars(points)) == reach


def test_a_graph_of_results_alone_has_no_usual_reach() -> None:
    assert usual_reach(index_graph(read_graph({"x": (add, 1, 2), "y": (add, 1, 3)}))) == 0
