"""Tasks that need something of which there is only so much."""

from operator import add

from graphmill.graph.model import read_graph
from graphmill.order import order_graph
from graphmill.scheduler import Options, Scheduler, Selection
from graphmill.scheduler.estimates import Estimates
from graphmill.scheduler.events import Run, SlotsChanged, TaskFinished, TaskLost


def make(dsk, needs, resources):
    graph = read_graph(dsk)
    priority = order_graph(graph, results=dsk.keys()).priorities.__getitem__
    options = Options(
        Selection.PRIORITY, estimates=Estimates(), resources=resources, needs=needs, lost_retries=9
    )
    return Scheduler(graph, dsk.keys(), priority, {}, options)


def started(commands):
    return {command.key for command in commands if isinstance(command, Run)}


def drive(scheduler, slots, check):
    """Run all tasks, the one that has run longest first; check after each step."""
    running = list(started(scheduler.handle(SlotsChanged(slots))))
    order = []
    while running:
        check(running)
        scheduler.state.validate()
        key = running.pop(0)
        order.append(key)
        running += started(scheduler.handle(TaskFinished(key, 1)))
    assert scheduler.done
    return order


def test_what_does_not_fit_waits_and_others_run():
    dsk = {f"gpu-{n}": (add, n, 1) for n in range(4)} | {f"cpu-{n}": (add, n, 2) for n in range(4)}
    scheduler = make(dsk, {f"gpu-{n}": {"gpu": 1} for n in range(4)}, {"gpu": 1})

    def check(running):
        assert sum(key.startswith("gpu") for key in running) <= 1
        left = len(dsk) - len(scheduler.state.finished)
        others = sum(key.startswith("cpu") for key in dsk) - sum(
            key.startswith("cpu") for key in scheduler.state.finished
        )
        assert len(running) >= min(3, others, left)

    assert len(drive(scheduler, 3, check)) == 8


def test_several_resources_at_once():
    needs = {"a": {"x": 2, "y": 1}, "b": {"x": 2}, "c": {"y": 1}, "d": {"x": 1, "y": 0.5}}
    scheduler = make(dict.fromkeys(needs, (add, 1, 1)), needs, {"x": 3, "y": 1})

    def check(running):
        for name, most in (("x", 3), ("y", 1)):
            assert sum(needs[key].get(name, 0) for key in running) <= most

    assert len(drive(scheduler, 4, check)) == 4


def test_a_lost_task_gives_back_what_it_had():
    scheduler = make({"a": (add, 1, 1), "b": (add, 1, 2)}, {"a": {"x": 1}, "b": {"x": 1}}, {"x": 1})
    (first,) = started(scheduler.handle(SlotsChanged(2)))
    (again,) = started(scheduler.handle(TaskLost(first, RuntimeError())))
    (last,) = started(scheduler.handle(TaskFinished(again, 1)))
    assert {again, last} == {"a", "b"}
    scheduler.handle(TaskFinished(last, 1))
    assert scheduler.done


def test_tasks_set_aside_are_still_ready():
    scheduler = make({"a": (add, 1, 1), "b": (add, 1, 2)}, {"a": {"x": 1}, "b": {"x": 1}}, {"x": 1})
    scheduler.handle(SlotsChanged(2))
    assert len(scheduler.state.running) == len(list(scheduler.state.ready)) == 1
    assert not scheduler.done
