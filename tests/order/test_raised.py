"""Users' priorities within the static order."""

from operator import add

from graphmill.graph.model import read_graph
from graphmill.order import order_graph
from graphmill.order.raised import raised


def make(dsk, wanted):
    graph = read_graph(dsk)
    before = order_graph(graph, results=dsk.keys()).priorities
    return before, raised(before, graph, wanted)


DSK = {"a": (add, 1, 1), "b": (add, "a", 1), "c": (add, 2, 2), "d": (add, "c", 1), "e": (add, "b", "d")}


def test_what_is_wanted_runs_first_with_what_it_needs():
    for wanted, first in (("d", ["c", "d"]), ("b", ["a", "b"])):
        _, after = make(DSK, {wanted: 1})
        assert sorted(after, key=after.__getitem__)[:2] == first


def test_inputs_come_before_their_users_whatever_is_said_of_them():
    _, after = make(DSK, {"e": 5, "a": -3, "c": -2, "b": 1})
    for user, *_ in DSK.items():
        for dep in read_graph(DSK).dependencies[user]:
            assert after[dep] < after[user]


def test_what_is_wanted_less_runs_last():
    _, after = make({**DSK, "z": (add, 7, 7)}, {"a": -1, "b": -1, "c": -1, "d": -1, "e": -1})
    assert min(after, key=after.__getitem__) == "z"


def test_the_rest_stays_as_it_is():
    before, after = make(DSK, dict.fromkeys(DSK, 2))
    assert sorted(before, key=before.__getitem__) == sorted(after, key=after.__getitem__)
    assert sorted(after.values()) == list(range(len(after)))
