"""The run loop over an executor of the tests' own: references for values, batches, tasks that are lost."""

import gc
import logging
import weakref
from dataclasses import dataclass, field
from operator import add, sub

import pytest

from graphmill.callbacks import Callback
from graphmill.collector import collector_paused
from graphmill.errors import CycleError, InvalidTransition, WorkerError
from graphmill.loop import Plan, Settings, plan_order, run_graph
from graphmill.scheduler import Options, Selection
from graphmill.scheduler.events import SlotsChanged, TaskFailed, TaskFinished, TaskLost


@dataclass(frozen=True, slots=True)
class Reference:
    """Stands for a value that only the executor has."""

    number: int


@dataclass(slots=True)
class Bench:
    """Runs what was submitted when it is waited for, as many at once as there are."""

    slots: int = 2
    #: For some tasks, what happens to them before they run, in turn.
    troubles: dict = field(default_factory=dict)
    #: Told as well, before the first tasks have ended.
    news: list = field(default_factory=list)
    #: Raised by `wait`.
    breaks: BaseException | None = None
    values: dict = field(default_factory=dict)
    submitted: list = field(default_factory=list)
    #: What the loop said, in order.
    heard: list = field(default_factory=list)

    def begin(self, state, *, shows):
        self.heard.append("begin")

    def submit(self, key, task, values, allowance):
        self.heard.append(("submit", key))
        self.submitted.append((key, task, values))

    def spill(self, key, value):
        self.heard.append(("spill", key))

    def flush(self):
        self.heard.append("flush")

    def wait(self, ready):
        assert self.heard[-1] == "flush"
        self.heard.append("wait")
        if self.breaks is not None:
            raise self.breaks
        batch, self.submitted = self.submitted, []
        news, self.news = self.news, []
        assert batch or news, "waits for nothing"
        return [*news, *(self.run(*each) for each in batch)]

    def run(self, key, task, values):
        if self.troubles.get(key):
            kind = self.troubles[key].pop(0)
            return kind(key, WorkerError(f"{kind.__name__} {key}"))
        value = task({dep: self.values.get(given, given) for dep, given in values.items()})
        reference = Reference(len(self.values))
        self.values[reference] = value
        return TaskFinished(key, reference, 8, "the bench")

    def release(self, key, value):
        self.heard.append(("release", key, value))

    def value_of(self, value):
        self.heard.append(("value_of", value))
        return self.values.get(value, value)

    def cancel(self):
        self.heard.append("cancel")

    def said(self, what):
        return [each for each in self.heard if each == what or each[0] == what]


#: Two halves that can run at once, and what needs both.
DSK = {"x": 5, "a": (add, "x", 1), "b": (sub, "x", 1), "sum": (add, "a", "b")}


def run(bench, dsk=DSK, result="sum", cache=None, **settings):
    return run_graph(dsk, result, bench, {} if cache is None else cache, Settings(**settings))


def plan_with(**options):
    def plan(graph, results):
        return Plan(plan_order(graph, results).priority, Options(**options))

    return plan


# ---- what passes between loop and executor


def test_results_are_what_the_executor_gave():
    bench = Bench()
    reference = run(bench)
    assert bench.values[reference] == 10
    (only,) = run(bench, result=["sum"])
    assert bench.values[only] == 10


def test_values_of_the_cache_and_the_graph_are_passed_on():
    bench = Bench()
    cache = {"b": 100}
    assert bench.values[run(bench, cache=cache)] == 106
    assert cache == {"sum": Reference(1)}


def test_a_whole_list_is_handled_before_it_is_flushed():
    bench = Bench()
    run(bench, result=["sum"])
    calls = [each if type(each) is str else each[0] for each in bench.heard]
    assert calls == [
        *("begin", "submit", "submit", "flush", "wait"),
        *("release", "submit", "flush", "wait"),
        *("release", "release", "flush"),
    ]


def test_what_is_released_is_what_the_executor_gave():
    bench = Bench()
    run(bench)
    released = {key: value for _, key, value in bench.said("release")}
    assert released["x"] == 5
    assert {bench.values[released[key]] for key in "ab"} == {6, 4}
    assert len(released) == 3


def test_values_are_asked_for_only_where_a_callback_listens():
    bench = Bench()
    run(bench)
    run(bench, callbacks=Callback(pretask=lambda *args: None, finish=lambda *args: None))
    assert bench.said("value_of") == []
    told = []
    callback = Callback(posttask=lambda key, value, dsk, state, worker: told.append((key, value, worker)))
    run(bench, callbacks=callback)
    assert sorted(told) == [("a", 6, "the bench"), ("b", 4, "the bench"), ("sum", 10, "the bench")]
    assert len(bench.said("value_of")) == 3


def test_posttask_sees_a_value_before_its_release():
    bench = Bench()
    seen = []
    callback = Callback(posttask=lambda key, *args: seen.append((key, len(bench.said("release")))))
    run(bench, callbacks=callback)
    assert seen[-1] == ("sum", 1)  # x is gone, a and b are not


def test_releases_are_logged_with_the_size_of_references(caplog):
    @dataclass(frozen=True)
    class Sized(Reference):
        nbytes: int = 100

    class Weighs(Bench):
        def run(self, key, task, values):
            done = Bench.run(self, key, task, values)
            sized = Sized(done.value.number)
            self.values[sized] = self.values.pop(done.value)
            return TaskFinished(key, sized)

    with caplog.at_level(logging.DEBUG, "graphmill.loop"):
        run(Weighs())
    assert caplog.messages[-1].endswith("by the end of 'sum'; 100 bytes held")


# ---- slots


@pytest.mark.parametrize(("slots", "at_once"), [(1, 1), (3, 3), (20, 6)])
def test_no_more_tasks_at_once_than_slots(slots, at_once):
    bench = Bench(slots=slots)
    dsk = {f"task {i}": (add, i, 1) for i in range(6)}
    run(bench, dsk, list(dsk))
    first = bench.heard.index("flush")
    assert len([each for each in bench.heard[:first] if each[0] == "submit"]) == at_once


def test_slots_may_come_later():
    bench = Bench(slots=0, news=[SlotsChanged(2)])
    assert bench.values[run(bench)] == 10
    assert bench.heard[:3] == ["begin", "flush", "wait"]


# ---- trouble


def test_a_lost_task_is_submitted_again():
    bench = Bench(troubles={"a": [TaskLost, TaskLost]})
    assert bench.values[run(bench, plan=plan_with(lost_retries=2))] == 10
    assert bench.said("submit").count(("submit", "a")) == 3
    assert bench.said("cancel") == []


def test_a_task_that_is_lost_too_often_ends_the_run():
    bench = Bench(troubles={"a": [TaskLost, TaskLost]})
    with pytest.raises(WorkerError, match="TaskLost a") as caught:
        run(bench, plan=plan_with(lost_retries=1))
    assert not hasattr(caught.value, "__notes__")  # it raised nothing itself
    assert bench.said("cancel") == ["cancel"]


def test_a_lost_task_is_not_run_again_here():
    bench = Bench(troubles={"a": [TaskLost]})
    with pytest.raises(WorkerError):
        run(bench, rerun_locally=True)


def test_failed_tasks_are_tried_again_where_the_plan_says_so():
    bench = Bench(troubles={"a": [TaskFailed], "b": [TaskFailed]})
    assert bench.values[run(bench, plan=plan_with(retries={"a": 1, "b": 1}))] == 10


def test_a_failed_task_ends_the_run():
    bench = Bench(troubles={"a": [TaskFailed]})
    finished = []
    callback = Callback(finish=lambda dsk, state, failed: finished.append((failed, bench.heard[-1])))
    with pytest.raises(WorkerError, match="TaskFailed a") as caught:
        run(bench, callbacks=callback)
    assert caught.value.__notes__ == ["raised by the task 'a'"]
    assert bench.said("cancel") == ["cancel"]
    assert finished == [(True, "cancel")]


def test_a_task_that_fails_elsewhere_is_run_again_here_on_values():
    bench = Bench(troubles={"sum": [TaskFailed]})
    with pytest.raises(WorkerError) as caught:
        run(bench, rerun_locally=True)
    assert caught.value.__notes__[-1] == "run again in this process, the task raised nothing"
    assert len(bench.said("value_of")) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_what_interrupts_a_wait_cancels_the_run(error):
    bench = Bench(breaks=error)
    failures = []
    with pytest.raises(type(error)) as caught:
        run(bench, callbacks=Callback(finish=lambda dsk, state, failed: failures.append(failed)))
    assert caught.value is error
    assert bench.heard[-1] == "cancel"
    assert failures == [True]


@pytest.mark.parametrize("where", ["start", "start_state", "pretask", "posttask"])
def test_a_callback_that_raises_cancels_the_run(where):
    def fail(*args):
        raise LookupError(where)

    bench = Bench()
    with pytest.raises(LookupError, match=where):
        run(bench, callbacks=Callback(**{where: fail}))
    assert bench.heard[-1] == "cancel"


def test_a_graph_that_cannot_run_cancels_the_run():
    bench = Bench()
    with pytest.raises(CycleError):
        run(bench, {"a": (add, "a", 1)}, "a")
    assert bench.heard == ["cancel"]


def test_a_finish_that_raises_comes_too_late_to_cancel():
    def fail(*args):
        raise LookupError("finish")

    bench = Bench()
    with pytest.raises(LookupError):
        run(bench, callbacks=Callback(finish=fail))
    assert bench.said("cancel") == []


def test_an_executor_that_tells_of_what_does_not_run():
    bench = Bench(news=[TaskFinished("sum", 0)])
    with pytest.raises(InvalidTransition, match="'sum' has ended, but was not running"):
        run(bench)
    assert bench.heard[-1] == "cancel"


# ---- the plan


def test_the_plan_is_made_of_the_graph_that_was_read():
    seen = []

    def plan(graph, results):
        seen.append((set(graph.tasks), graph.data, results))
        graph.data["x"] = 50  # as an engine does that puts data elsewhere
        ranks = {"x": 0, "b": 1, "a": 2, "sum": 3}
        return Plan(ranks.__getitem__, Options(Selection.PRIORITY))

    bench = Bench(slots=1)
    assert bench.values[run(bench, {**DSK, "unneeded": (add, 1, 2)}, plan=plan)] == 100
    assert seen == [({"a", "b", "sum"}, {"x": 50}, {"sum"})]
    assert bench.said("submit") == [("submit", "b"), ("submit", "a"), ("submit", "sum")]


def test_tasks_that_need_nothing_run_as_they_are_listed():
    dsk = {f"task {i}": (add, i, 1) for i in (3, 1, 2)}
    bench = Bench(slots=1)
    run(bench, dsk, ["task 1", "task 2", "task 3"])
    assert [key for _, key in bench.said("submit")] == list(dsk)


# ---- the collector


def test_the_collector_is_paused_and_goes_on():
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()  # whoever paused it first lets it go on
    assert gc.isenabled()


def test_the_collector_goes_on_after_an_error():
    with pytest.raises(LookupError), collector_paused():
        raise LookupError
    assert gc.isenabled()


def is_young(thing):
    return any(each is thing for generation in (0, 1) for each in gc.get_objects(generation))


@pytest.mark.parametrize(("tasks", "young"), [(10, True), (100_000, False)])
def test_only_what_a_large_graph_leaves_counts_as_old(tasks, young):
    gc.collect()  # so that none is due while this looks
    before = gc.get_freeze_count()
    with collector_paused(tasks):
        made = [[]]
    assert is_young(made) == young
    assert gc.get_freeze_count() <= before


def test_garbage_does_not_grow_old_with_a_large_graph():
    class Thing:
        pass

    gc.collect()
    thing = Thing()
    thing.itself = thing
    gone = weakref.ref(thing)
    del thing
    with collector_paused(100_000):
        assert gone() is None


def test_what_others_have_frozen_stays_frozen():
    gc.collect()
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        with collector_paused(100_000):
            made = [[]]
        assert is_young(made)
        assert gc.get_freeze_count() == before > 0
    finally:
        gc.unfreeze()
