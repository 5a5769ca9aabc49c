"""Tasks ranked, put together, counted, placed."""

import numpy as np

from graphmill.diagnostics.drawing import place_tasks
from graphmill.diagnostics.kinds import bars, concurrency, label_of, overview, rank_kinds
from graphmill.diagnostics.records import TaskRecord

MB = 1_000_000


def task(key, worker, start, end, outcome="done", nbytes=0):
    return TaskRecord(key, str(key).partition("-")[0], 0, worker, start, end, nbytes, 0, 0, 0, 0, outcome)


def test_kinds_are_ranked_by_time(recording):
    uses = rank_kinds(recording.tasks)
    assert [use.kind for use in uses] == ["load", "sum", "total"]
    load = uses[0]
    assert (load.tasks, load.again, load.seconds, load.longest) == (2, 1, 2.5, 1.0)
    assert (load.output_bytes, load.copied_bytes) == (16 * MB, 8 * MB)
    assert load.mean == 2.5 / 3


def test_bars_are_one_for_each_task(recording):
    made = bars(recording.tasks)
    assert [(bar.worker, bar.start) for bar in made] == [
        (-1, 3.5),
        (0, 1.0),
        (0, 2.0),
        (1, 1.0),
        (1, 1.5),
        (1, 3.0),
    ]
    assert made[3].outcome == "refused"
    assert all((bar.low, bar.high) == (0.0, 1.0) for bar in made)


def test_short_tasks_lie_upon_each_other():
    tasks = [
        task("a-1", 0, 0.0, 0.25, nbytes=1),
        task("b-1", 0, 0.25, 0.375),
        task("a-2", 0, 0.5, 0.75, nbytes=2),
    ]
    tasks += [task("long-1", 0, 1.0, 10.0), task("a-3", 1, 3.125, 3.25)]
    made = overview(bars(tasks), ["long", "b", "a"], cells=10)
    found = {(bar.worker, bar.kind, bar.start): bar for bar in made}
    a, b, alone = found[0, "a", 0.0], found[0, "b", 0.0], found[1, "a", 3.0]
    assert (b.low, b.high, b.label) == (0.0, 0.125, "b-1")
    assert (a.low, a.high, a.end, a.label) == (0.125, 0.625, 1.0, "2 tasks")
    assert (a.seconds, a.output_bytes) == (0.5, 3)
    assert (alone.high, alone.label) == (0.125, "a-3")
    assert found[0, "long", 1.0].end == 10.0
    assert len(made) == 4
    assert overview([], [], 10) == []


def test_how_many_ran_at_a_time():
    tasks = [task("a", 0, 0.0, 2.0), task("b", 1, 1.0, 1.5), task("c", 1, 3.5, 4.0)]
    edges, count = concurrency(tasks, 0.0, 4.0, 4)
    np.testing.assert_allclose(edges, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(count, [1.0, 1.5, 0.0, 0.5])
    assert concurrency([], 0.0, 0.0, 2)[1].tolist() == [0.0, 0.0]


def test_long_tokens_are_cut():
    assert label_of(("x-" + "0123456789abcdef" * 2, 1)) == "x-012345 (1)"
    assert label_of("plain") == "plain"


def test_places_follow_what_tasks_need():
    needs = {"a": (), "b": (), "c": ("b", "data"), "d": ("a",), "e": ("c", "d")}
    place = place_tasks(list(needs), needs)
    assert {key: x for key, (x, _) in place.items()} == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2}
    # Sorted by their neighbours, edges do not cross.
    assert (place["a"][1] < place["b"][1]) == (place["d"][1] < place["c"][1])
    assert place_tasks([], {}) == {}
