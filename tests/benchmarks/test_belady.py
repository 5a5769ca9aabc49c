"""The least that a run could have spilled is worked out from what happened."""

import pytest

from benchmarks.belady import Optimum, optimum
from benchmarks.trace import Finished, Released, Started


def task(key, nbytes, *inputs, frees=()):
    """Have a task run by itself, with a result in a block of its own."""
    blocks = {f"block of {key}": nbytes} if nbytes else {}
    return [Started(key, inputs), Finished(key, blocks), *map(Released, frees)]


#: Three blocks made in turn, and read as made: b and c each once, a twice.
TRACE = [
    *task("a", 10),
    *task("b", 10),
    *task("c", 10),
    *task("use a", 0, "a"),
    *task("use b", 0, "b", frees=["b"]),
    *task("use c", 0, "c", frees=["c"]),
    *task("use a again", 0, "a", frees=["a"]),
]


def test_nothing_is_spilled_where_all_fits():
    assert optimum(TRACE, 30) == Optimum(spilled=0, read_back=0, peak=30)


def test_the_block_goes_that_is_needed_last():
    # When c is made, b goes, which is needed after a; when b is read, a goes, which is needed after c.
    assert optimum(TRACE, 20) == Optimum(spilled=20, read_back=20, peak=20)


def test_what_is_on_disk_already_is_not_written_again():
    trace = [*task("a", 10), *task("b", 10)]
    for turn in range(3):
        trace += [*task(f"use a {turn}", 0, "a"), *task(f"use b {turn}", 0, "b")]
    found = optimum(trace, 10)
    assert found.spilled == 20
    assert found.read_back == 60


def test_results_that_nobody_reads_go_first():
    trace = [*task("asked for", 10), *task("a", 10), *task("b", 10), *task("use", 0, "a", "b")]
    assert optimum(trace, 20) == Optimum(spilled=10, read_back=0, peak=20)


def test_blocks_go_with_the_last_result_in_them():
    view = [Started("view", ("a",)), Finished("view", {"block of a": 10}), Released("a")]
    trace = [*task("a", 10), *view, *task("b", 10), *task("use", 0, "view", frees=["view"]), *task("c", 10)]
    assert optimum(trace, 20) == Optimum(spilled=0, read_back=0, peak=20)


def test_names_of_blocks_may_come_again():
    trace = []
    for turn in range(3):
        trace += [Started(f"x{turn}"), Finished(f"x{turn}", {"the same": 10}), Released(f"x{turn}")]
    assert optimum(trace, 10) == Optimum(spilled=0, read_back=0, peak=10)


def test_tasks_that_run_keep_inputs_and_room_for_results():
    together = [
        Started("x", ("a",)),
        Started("y", ("b",)),
        Finished("x", {"block of x": 10}),
        Finished("y", {"block of y": 10}),
    ]
    found = optimum([*task("a", 10), *task("b", 10), *together], 20)
    assert found == Optimum(spilled=10, read_back=10, peak=40)


def test_a_task_that_was_lost_counts_only_when_it_runs_again():
    trace = [*task("a", 10), Started("x", ("a",)), *task("b", 10), *task("x", 10, "a", frees=["a"])]
    # While b is made, nothing holds a.
    assert optimum(trace, 20) == Optimum(spilled=10, read_back=0, peak=20)
    assert optimum(trace, 10).spilled == 20


@pytest.mark.parametrize("budget", [0, 10, 20, 30])
def test_tasks_run_however_little_there_is(budget):
    assert optimum(TRACE, budget).peak == max(10, budget)
