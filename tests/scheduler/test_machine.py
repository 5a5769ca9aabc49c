"""The scheduler, driven through everything that can happen to it.

`drive` is a second, slow scheduler's bookkeeping: it knows from the graph alone what must be held, what may
run and how many bytes are live, and compares after each event.
"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from operator import add
from pathlib import Path
from random import Random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import graphmill
from graphmill.errors import InvalidTransition
from graphmill.graph import read_graph
from graphmill.local import start_state_from_dask
from graphmill.scheduler import Listed, Options, Scheduler, Selection, start_state
from graphmill.scheduler.events import (
    Abort,
    Cancelled,
    Release,
    Run,
    SlotsChanged,
    TaskFailed,
    TaskFinished,
    TaskLost,
)
from graphmill.scheduler.policy import AdmissionQueue, ReadyQueue

MANY = settings(max_examples=300, deadline=None)
SOME = settings(max_examples=100, deadline=None)


def task(*args):
    raise AssertionError("the scheduler runs nothing")


# ---- a run that hypothesis makes up


@dataclass(frozen=True, slots=True)
class Case:
    """A graph, how it is scheduled, and what happens to it."""

    #: What the graph says, keys in order: data where it is an integer.
    dsk: dict
    #: The keys asked for.
    results: tuple
    #: What the cache holds already.
    cached: dict
    #: The rank of each key.
    ranks: dict
    options: Options
    slots: int
    #: Which of the running tasks each step is about, and what happens to it.
    script: tuple = ()
    #: Whether more may fail or get lost than may be tried again.
    fatal: bool = False


@st.composite
def cases(draw, fatal=False):
    count = draw(st.integers(1, 12))
    names = [f"k{i}" if i % 3 else ("k", i) for i in range(count)]
    dsk = {}
    for i, name in enumerate(names):
        deps = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        is_data = not deps and draw(st.booleans())
        dsk[name] = i if is_data else (task, *[names[dep] for dep in sorted(deps)])
    results = draw(st.sets(st.sampled_from(names), min_size=1))
    cached = draw(st.sets(st.sampled_from([*names, "not of this graph"]), max_size=3))
    # A permutation is drawn as a seed: that it shrinks badly costs less than a list of swaps.
    ranks = list(range(count))
    Random(draw(st.integers(0, 1000))).shuffle(ranks)
    chosen = draw(all_options(names, dsk, cached))
    return Case(
        dsk=dsk,
        results=tuple(name for name in names if name in results),
        cached={name: f"cached {name}" for name in [*names, "not of this graph"] if name in cached},
        ranks=dict(zip(names, ranks, strict=True)),
        options=chosen,
        slots=draw(st.integers(0, 4)),
        script=tuple(draw(st.lists(st.integers(0, 999), max_size=40))),
        fatal=fatal,
    )


@st.composite
def all_options(draw, names, dsk, cached):
    # (what is there from the start: test_values_there_from_the_start)
    tasks = [name for name in names if isinstance(dsk[name], tuple) and name not in cached]
    sizes = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(tasks, st.integers(0, 9))))
    retries = st.dictionaries(st.sampled_from(names), st.integers(0, 2), max_size=4)
    return Options(
        selection=draw(st.sampled_from(Selection)),
        sizes=sizes,
        budget=None if sizes is None else draw(st.none() | st.integers(0, 30)),
        retries=draw(retries),
        lost_retries=draw(st.integers(0, 2)),
    )


@dataclass(slots=True)
class Drive:
    """One drive of a case, and what it must have come to by the graph alone."""

    case: Case
    scheduler: Scheduler
    #: For each key, what it needs.
    needs: dict
    #: The tasks that have run.
    finished: set = field(default_factory=set)
    running: list = field(default_factory=list)
    attempts: Counter = field(default_factory=Counter)
    #: Bytes of the outputs of tasks, as they turned out.
    sizes: dict = field(default_factory=dict)
    peak: int = 0
    aborted: bool = False
    #: Events and the commands they led to.
    trace: list = field(default_factory=list)
    released: Counter = field(default_factory=Counter)

    def handle(self, happened):
        commands = self.scheduler.handle(happened)
        self.trace.append((type(happened).__name__, getattr(happened, "key", None), str(commands)))
        self.check(happened, commands)

    def check(self, happened, commands):
        state, case = self.scheduler.state, self.case
        before = set(self.running)
        for command in commands:
            if isinstance(command, Run):
                self.check_run(command.key)
                self.running.append(command.key)
                self.note_peak()
            elif isinstance(command, Release):
                self.check_release(command, happened)
        state.validate()
        assert state.running == set(self.running)
        assert len(set(self.running)) == len(self.running)
        if not self.aborted:
            assert len(self.running) <= max(case.slots, len(before))
            assert len(set(self.running) - before) <= case.slots
        self.check_held()
        self.check_bytes()

    def pending(self, key):
        return key in self.needs and key not in self.finished

    def users(self, key):
        return [user for user, deps in self.needs.items() if key in deps]

    def must_hold(self, key):
        return key in self.case.results or any(self.pending(user) for user in self.users(key))

    def check_held(self):
        """Each value is there from when it is made until nobody needs it: no longer, no shorter."""
        state, graph_keys = self.scheduler.state, set(self.scheduler.state.dependencies)
        there = {key for key in graph_keys if not self.pending(key)}
        held = {key for key in there if self.must_hold(key)}
        strangers = set(self.case.cached) - graph_keys
        assert set(state.cache) == held | strangers
        assert state.released == there - held
        assert set(self.released) == state.released
        assert set(self.released.values()) <= {1}

    def check_release(self, command, happened):
        assert command.by == happened.key
        assert command.key not in self.case.results
        assert command.value == self.value(command.key)
        self.released[command.key] += 1

    def value(self, key):
        if key in self.finished:
            return f"value of {key}"
        return self.case.cached.get(key, self.case.dsk[key])

    def check_run(self, key):
        state = self.scheduler.state
        assert not self.aborted
        assert self.pending(key)
        assert key not in self.running
        assert len(self.running) < self.case.slots
        assert all(dep in state.cache for dep in self.needs[key])
        options = self.case.options
        if self.runnable_rank() is None:
            return
        if options.selection is Selection.PRIORITY and not isinstance(state.ready, AdmissionQueue):
            assert self.case.ranks[key] == self.runnable_rank()
        if isinstance(state.ready, AdmissionQueue) and self.running:
            fits = self.live() + self.sizes.get(key, 0) <= options.budget
            assert fits or self.growth(key) <= 0

    def runnable_rank(self):
        ready = [
            key
            for key in self.needs
            if self.pending(key)
            and key not in self.running
            and not any(self.pending(dep) for dep in self.needs[key])
        ]
        return min((self.case.ranks[key] for key in ready), default=None)

    def growth(self, key):
        frees = [
            dep
            for dep in self.needs[key]
            if dep not in self.case.results
            and [user for user in self.users(dep) if self.pending(user)] == [key]
        ]
        return self.sizes.get(key, 0) - sum(self.sizes.get(dep, 0) for dep in frees)

    def live(self):
        made = [key for key in self.finished if self.must_hold(key)]
        return sum(self.sizes.get(key, 0) for key in (*made, *self.running))

    def note_peak(self):
        self.peak = max(self.peak, self.live())

    def check_bytes(self):
        ledger = self.scheduler.ledger
        assert (ledger is None) == (self.case.options.sizes is None)
        if ledger is not None:
            assert ledger.live == self.live()
            assert ledger.peak >= self.peak

    # ---- events

    def finish(self, key, nbytes=None):
        self.running.remove(key)
        self.finished.add(key)
        if nbytes is not None and self.case.options.sizes is not None:
            self.sizes[key] = nbytes
        self.handle(TaskFinished(key, f"value of {key}", nbytes))

    def spoil(self, key, kind):
        """Let a task fail or get lost, if that is not too often for it."""
        options = self.case.options
        default = options.lost_retries if kind is TaskLost else 0
        limit = options.retries.get(key, default)
        deadly = self.attempts[key] + 1 > limit
        if deadly and not self.case.fatal:
            self.finish(key)
            return
        self.attempts[key] += 1
        error = OSError(f"{kind.__name__} {key!r}")
        self.running.remove(key)
        was_aborted, self.aborted = self.aborted, self.aborted or deadly
        self.handle_spoilt(kind(key, error), [Abort(key, error)] * (deadly and not was_aborted))

    def handle_spoilt(self, happened, aborts):
        commands = self.scheduler.handle(happened)
        self.trace.append((type(happened).__name__, happened.key, str(commands)))
        assert [command for command in commands if isinstance(command, Abort)] == aborts
        self.check(happened, [command for command in commands if not isinstance(command, Abort)])

    def step(self, number):
        what, which = divmod(number, 40)
        if what >= 22:
            self.case = replace(self.case, slots=which % 5)
            self.handle(SlotsChanged(self.case.slots))
            return
        if not self.running:
            return
        key = self.running[which % len(self.running)]
        if what < 14:
            self.finish(key, nbytes=what if what % 2 else None)
        else:
            self.spoil(key, TaskFailed if what < 18 else TaskLost)


def drive(case):
    """Drive a case to its end; checks on the way."""
    graph = read_graph(case.dsk, case.results, case.cached)
    scheduler = Scheduler(graph, case.results, case.ranks.__getitem__, dict(case.cached), case.options)
    run = Drive(case, scheduler, {key: set(graph.dependencies[key]) for key in graph.tasks})
    run.sizes.update(case.options.sizes or {})
    scheduler.state.validate()
    run.check_held()
    run.handle(SlotsChanged(case.slots))
    for number in case.script:
        run.step(number)
    if not run.scheduler.done and run.case.slots == 0:
        run.case = replace(run.case, slots=1)
        run.handle(SlotsChanged(1))
    while run.running:
        run.finish(run.running[0])
    return run


@MANY
@given(cases())
def test_every_run_finishes(case):
    run = drive(case)
    assert run.scheduler.done
    assert not run.scheduler.stopped
    assert run.finished == set(run.needs)
    strangers = {key for key in case.cached if key not in run.scheduler.state.dependencies}
    assert set(run.scheduler.state.cache) == {*case.results, *strangers}
    assert run.scheduler.state.cache == {
        **{key: run.value(key) for key in case.results},
        **{key: case.cached[key] for key in strangers},
    }
    assert set(run.released) == set(run.scheduler.state.dependencies) - set(case.results)


@SOME
@given(cases())
def test_what_is_constant_stays_as_it_is(case):
    # sets of `waiting` and `waiting_data` are those of the constant fields until they change
    graph = read_graph(case.dsk, case.results, case.cached)
    state = drive(case).scheduler.state
    assert state.dependencies == graph.dependencies
    assert state.dependents == graph.dependents()


@MANY
@given(cases(fatal=True))
def test_nothing_starts_after_a_failure(case):
    run = drive(case)
    event("failed" if run.aborted else "finished")
    assert run.scheduler.done
    assert run.scheduler.stopped == run.aborted
    assert run.aborted == (run.finished != set(run.needs))


@SOME
@given(cases(fatal=True))
def test_the_same_events_give_the_same_commands(case):
    assert drive(case).trace == drive(case).trace


@SOME
@given(cases())
def test_slots_are_used_while_there_are_tasks(case):
    case = replace(case, options=replace(case.options, budget=None), script=())
    run = drive(case)
    started = running = 0
    ready = len(run.needs)
    for kind, _, commands in run.trace:
        running -= kind == "TaskFinished"
        running += commands.count("Run(")
        started += commands.count("Run(")
    assert (started, running) == (ready, 0)
    assert run.scheduler.done


@SOME
@given(cases())
def test_a_full_stack_of_ready_tasks_waits_for_slots_only(case):
    case = replace(case, options=replace(case.options, budget=None))
    graph = read_graph(case.dsk, case.results, case.cached)
    scheduler = Scheduler(graph, case.results, case.ranks.__getitem__, dict(case.cached), case.options)
    running = []
    for happened in [SlotsChanged(2), *[None] * len(graph.tasks)]:
        commands = scheduler.handle(happened or TaskFinished(running.pop(0)))
        running += [command.key for command in commands if isinstance(command, Run)]
        assert len(running) == min(2, len(running) + len(scheduler.state.ready))
        if not running:
            break
    assert scheduler.done


# ---- the policies, by example


def make(dsk, results, options=None, slots=None, cache=None):
    cache = {} if cache is None else cache
    graph = read_graph(dsk, results, cache)
    ranks = {key: rank for rank, key in enumerate(dsk)}
    scheduler = Scheduler(graph, results, ranks.__getitem__, cache, options or Options())
    commands = [] if slots is None else scheduler.handle(SlotsChanged(slots))
    return scheduler, commands


def finish_all(scheduler, commands):
    """Finish tasks in the order in which they start; return that order."""
    started = []
    queue = [command.key for command in commands if isinstance(command, Run)]
    while queue:
        key = queue.pop(0)
        started.append(key)
        commands = scheduler.handle(TaskFinished(key))
        queue += [command.key for command in commands if isinstance(command, Run)]
    assert scheduler.done
    return started


#: Two chains of three, best ranks across: a0 b0 a1 b1 a2 b2.
CHAINS = {f"{chain}{i}": (task, f"{chain}{i - 1}") if i else (task,) for i in range(3) for chain in "ab"}


def test_last_in_first_out_stays_with_what_it_has_begun():
    scheduler, commands = make(CHAINS, ["a2", "b2"], slots=1)
    assert finish_all(scheduler, commands) == ["a0", "a1", "a2", "b0", "b1", "b2"]


def test_priority_goes_by_rank_alone():
    options = Options(selection=Selection.PRIORITY)
    scheduler, commands = make(CHAINS, ["a2", "b2"], options, slots=1)
    assert finish_all(scheduler, commands) == list(CHAINS)


#: Two loads of 10 bytes, each reduced to 1.
LOADS = {
    "load1": (task,),
    "load2": (task,),
    "reduce1": (task, "load1"),
    "reduce2": (task, "load2"),
}
SIZES = {"load1": 10, "load2": 10, "reduce1": 1, "reduce2": 1}


@pytest.mark.parametrize(("budget", "peak"), [(None, 22), (20, 21), (15, 12), (0, 12)])
def test_a_budget_holds_back_what_grows_memory(budget, peak):
    options = Options(selection=Selection.PRIORITY, sizes=SIZES, budget=budget)
    scheduler, commands = make(LOADS, ["reduce1", "reduce2"], options, slots=2)
    assert sorted(finish_all(scheduler, commands)) == sorted(LOADS)
    assert scheduler.ledger.peak == peak
    if budget in (None, 20):
        assert commands == [Run("load1"), Run("load2")]
    else:
        assert commands == [Run("load1")]
        assert scheduler.state.ready.held_back > 0


def test_a_task_held_back_starts_once_it_shrinks_memory():
    # `big` is needed by two: the second to come lets it go, and may exceed the budget a little
    dsk = {"long": (task,), "big": (task,), "first": (task, "big"), "second": (task, "big")}
    sizes = {"long": 0, "big": 100, "first": 50, "second": 5}
    options = Options(selection=Selection.PRIORITY, sizes=sizes, budget=154)
    scheduler, commands = make(dsk, ["long", "first", "second"], options, slots=3)
    assert commands == [Run("long"), Run("big")]
    assert scheduler.handle(TaskFinished("big")) == [Run("first")]
    assert list(scheduler.state.ready) == ["second"]
    assert scheduler.handle(TaskFinished("first")) == [Run("second")]


def test_a_task_that_shrinks_memory_waits_while_others_may_make_room():
    dsk = {"long": (task,), "big": (task,), "user": (task, "big")}
    sizes = {"long": 0, "big": 100, "user": 50}
    options = Options(selection=Selection.PRIORITY, sizes=sizes, budget=120)
    scheduler, commands = make(dsk, ["long", "user"], options, slots=3)
    assert commands == [Run("long"), Run("big")]
    assert scheduler.handle(TaskFinished("big")) == []
    assert scheduler.handle(TaskFinished("long")) == [Run("user")]


def test_an_alias_is_counted_once_and_for_as_long_as_either_is_held():
    node = pytest.importorskip("dask._task_spec")
    dsk = {
        "x": (task,),
        "alias": node.Alias("alias", "x"),
        "one": (task, "x"),
        "two": (task, "alias"),
    }
    sizes = {"x": 100, "alias": 100, "one": 1, "two": 1}
    options = Options(selection=Selection.PRIORITY, sizes=sizes, budget=150)
    scheduler, commands = make(dsk, ["one", "two"], options, slots=1)
    live = []
    for key in dsk:
        assert commands[-1] == Run(key)
        commands = scheduler.handle(TaskFinished(key))
        live.append(scheduler.ledger.live)
    assert live == [100, 101, 102, 2]


def test_inputs_that_were_asked_for_do_not_count_as_let_go():
    dsk = {"long": (task,), "big": (task,), "user": (task, "big")}
    sizes = {"long": 0, "big": 10, "user": 5}
    options = Options(selection=Selection.PRIORITY, sizes=sizes, budget=12)
    scheduler, _ = make(dsk, list(dsk), options, slots=3)
    assert scheduler.handle(TaskFinished("big")) == []
    assert scheduler.handle(TaskFinished("long")) == [Run("user")]


@pytest.mark.parametrize("cache", [{}, {"t": 1}])
def test_values_there_from_the_start(cache):
    dsk = {"data": 1, "t": (task, "data"), "u": (task, "t")}
    options = Options(sizes={"data": 8, "t": 2, "u": 1})
    scheduler, commands = make(dsk, ["u"], options, slots=1, cache=cache)
    finish_all(scheduler, commands)
    assert scheduler.ledger.live == 1  # that of `u`


def test_sizes_are_corrected_as_they_become_known():
    options = Options(selection=Selection.PRIORITY, sizes=SIZES, budget=100)
    scheduler, _ = make(LOADS, ["reduce1", "reduce2"], options, slots=2)
    scheduler.handle(TaskFinished("load1", nbytes=70))
    assert scheduler.ledger.live == 70 + 10 + 1
    scheduler.handle(TaskFinished("reduce1"))
    assert scheduler.ledger.live == 10 + 1


# ---- failures, by example


def test_a_failure_without_retries_ends_the_run():
    scheduler, commands = make(CHAINS, ["a2", "b2"], slots=2)
    assert commands == [Run("a0"), Run("b0")]
    error = ValueError()
    assert scheduler.handle(TaskFailed("a0", error)) == [Abort("a0", error)]
    assert not scheduler.done  # b0 still runs
    assert scheduler.handle(TaskFinished("b0")) == []
    assert scheduler.done
    scheduler.state.validate()


def test_a_second_failure_is_not_told_again():
    scheduler, _ = make(CHAINS, ["a2", "b2"], slots=2)
    scheduler.handle(TaskFailed("a0", ValueError()))
    assert scheduler.handle(TaskFailed("b0", ValueError())) == []
    assert scheduler.done


def test_retries():
    scheduler, _ = make(CHAINS, ["a2"], Options(retries={"a0": 2}), slots=1)
    assert scheduler.handle(TaskFailed("a0", ValueError())) == [Run("a0")]
    assert scheduler.handle(TaskLost("a0", OSError())) == [Run("a0")]
    error = ValueError()
    assert scheduler.handle(TaskFailed("a0", error)) == [Abort("a0", error)]


def test_only_lost_tasks_have_retries_by_default():
    for kind, limit in ((TaskLost, 2), (TaskFailed, 0)):
        scheduler, _ = make(CHAINS, ["a2"], Options(lost_retries=2), slots=1)
        error = OSError()
        answers = [scheduler.handle(kind("a0", error)) for _ in range(limit + 1)]
        assert answers == [[Run("a0")]] * limit + [[Abort("a0", error)]]


def test_cancelling_lets_running_tasks_end():
    scheduler, _ = make(CHAINS, ["a2", "b2"], slots=1)
    assert scheduler.handle(Cancelled()) == []
    assert not scheduler.done
    assert scheduler.handle(TaskFinished("a0")) == []
    assert scheduler.done
    assert scheduler.handle(SlotsChanged(5)) == []


def test_nothing_to_do_is_done_at_once():
    scheduler, commands = make({"x": 1}, ["x"], slots=3)
    assert commands == []
    assert scheduler.done
    assert scheduler.state.cache == {"x": 1}


# ---- events that cannot happen


@pytest.mark.parametrize("selection", Selection)
@pytest.mark.parametrize("kind", [TaskFinished, TaskFailed, TaskLost])
@pytest.mark.parametrize("key", ["a1", "b0", "done", "of no graph"])
def test_impossible_events(selection, kind, key):
    dsk = {"done": (task,), **CHAINS}
    options = Options(selection=selection)
    scheduler, _ = make(dsk, ["done", "a2", "b2"], options, slots=1)
    scheduler.handle(TaskFinished("done"))
    before = str(dict(scheduler.state)), scheduler.stopped
    with pytest.raises(InvalidTransition, match=repr(key)):
        scheduler.handle(kind(key, OSError()))
    assert (str(dict(scheduler.state)), scheduler.stopped) == before
    scheduler.state.validate()


def test_releasing_what_is_waited_for():
    scheduler, _ = make({"x": 1, "y": (task, "x")}, ["y"], slots=1)
    with pytest.raises(InvalidTransition, match=r"'x' was to be released while \{'y'\} wait"):
        scheduler.state.release("x")


# ---- what `validate` sees


def halfway():
    """A state that has a key of each sort.

    `data` and `early` are held, `gone` was released, `runs` runs, `next` is ready, `late` waits.
    """
    dsk = {
        "data": 1,
        "gone": (task,),
        "early": (task, "gone"),
        "runs": (task, "early", "data"),
        "next": (task, "early"),
        "late": (task, "runs", "next"),
    }
    scheduler, _ = make(dsk, ["late"], slots=1)
    scheduler.handle(TaskFinished("gone"))
    scheduler.handle(TaskFinished("early"))
    state = scheduler.state
    assert state.running == {"runs"}
    assert list(state.ready) == ["next"]
    assert state.waiting == {"late": {"runs", "next"}}
    assert state.released == {"gone"}
    state.validate()
    return state


def without(deps, *keys):
    return {name: frozenset(deps_of) - {*keys} for name, deps_of in deps.items()}


def unshared(dsk):
    state = start_state(read_graph(dsk), {}, list(dsk).index)
    state.unshare()
    return state


def break_dependents(state):
    state.dependents["early"].discard("next")
    state.waiting_data["early"].discard("next")


def break_dependencies(state):
    state.dependencies["late"] = frozenset(["runs"])
    state.waiting["late"] = {"runs"}


BROKEN = {
    "'runs' is ready and running at once": lambda s: s.ready.append("runs"),
    "'late' is waiting and running at once": lambda s: s.running.add("late"),
    "'runs' is running and finished at once": lambda s: s.finished.add("runs"),
    "'early' is finished, and its value is neither": lambda s: s.cache.pop("early"),
    "'data' has been forgotten: no job, no value": lambda s: s.cache.pop("data"),
    "'early' is held and released at once": lambda s: s.released.add("early"),
    "'gone' is held and released at once": lambda s: s.cache.update(gone=1),
    "'runs' is released and yet to run": lambda s: s.released.add("runs"),
    "'late' waits for nothing, and is not ready": lambda s: s.waiting.update(late=set()),
    "'late' waits for something that is there": lambda s: s.waiting.update(late={"runs", "next", "early"}),
    "'late' waits for something it does not need": lambda s: s.waiting.update(late={"runs", "next", "late"}),
    "'runs' is ready or running without an input": lambda s: (
        s.cache.pop("data"),
        s.released.add("data"),
    ),
    "'late' waits for less than is missing": lambda s: s.waiting.update(late={"runs"}),
    "'early' is needed by others than waiting_data": lambda s: s.waiting_data.update(early={"next"}),
    "'gone' is needed by others than waiting_data": lambda s: s.waiting_data.update(gone={"late"}),
    "'next' is not in the dependents of its inputs": break_dependents,
    "'next' is needed by a task that does not depend": break_dependencies,
    "a task is ready twice": lambda s: s.ready.append("next"),
    "ready holds keys that are not in the graph": lambda s: s.ready.append("?"),
    "running holds keys that are not in the graph": lambda s: s.running.add("?"),
    "finished holds keys that are not in the graph": lambda s: s.finished.add("?"),
    "waiting holds keys that are not in the graph": lambda s: s.waiting.update({"?": {"data"}}),
    "waiting_data holds keys that are not": lambda s: s.waiting_data.update({"?": set()}),
    "dependents holds keys that are not": lambda s: s.dependents.update({"?": set()}),
}


@pytest.mark.parametrize("problem", BROKEN)
def test_validate_sees(problem):
    state = halfway()
    BROKEN[problem](state)
    with pytest.raises(InvalidTransition, match=problem):
        state.validate()


def test_every_rule_is_shown_to_be_seen():
    # a rule added to `validate` must be added to BROKEN
    source = Path(sys.modules["graphmill.scheduler.state"].__file__).read_text()
    rules = [line for line in source.splitlines() if line.startswith('            "')]
    words = [line.strip().strip('",').split('"')[0][:25] for line in rules]
    assert len(words) == 12
    assert [rule for rule in words if not any(rule in problem for problem in BROKEN)] == []


def test_an_error_tells_the_story_of_its_key():
    state = halfway()
    state.released.add("runs")
    with pytest.raises(InvalidTransition) as caught:
        state.validate()
    story = str(caught.value)
    for words in ("needed by {'late'}", "released: True", "running: True", "finished: False"):
        assert words in story


# ---- states are values


def test_states_compare_by_their_fields():
    state = halfway()
    assert state == halfway()
    assert state == dict(state)
    state.released.add("data")
    assert state != halfway()
    assert state != 3


def test_start_state_without_a_ready_queue_of_its_own():
    graph = read_graph({"x": (add, 1, 2)})
    assert start_state(graph, {}, lambda key: 0).ready == ["x"]


def test_sets_are_shared_until_they_change():
    graph = read_graph({"x": (task,), "y": (task,), "sum": (task, "x", "y"), "max": (task, "x", "y")})
    state = start_state(graph, {}, list(graph.tasks).index)
    assert state.waiting["sum"] is state.dependencies["sum"]
    assert state.waiting_data["x"] is state.dependents["x"]
    state.running.add("x")
    state.cache["x"] = 1
    assert (state.wake("x"), state.forget("sum")) == ([], [])
    assert state.waiting == {"sum": {"y"}, "max": {"y"}}
    assert state.waiting_data == {"x": {"max"}, "y": {"max"}}
    assert state.dependents["x"] == state.dependents["y"] == {"sum", "max"}


@pytest.mark.parametrize("started", [start_state_from_dask, unshared])
def test_sets_for_whoever_wants_to_change_them(started):
    state = started({"x": (task,), "y": (task,), "sum": (task, "x", "y")})
    before = str((state.dependencies, state.dependents))
    for field_ in (state.waiting, state.waiting_data):
        for members in field_.values():
            members.clear()
    assert str((state.dependencies, state.dependents)) == before


def test_tasks_as_they_are_listed():
    keys = ["b", "a", "c"]
    listed = Listed(keys)
    graph = read_graph(dict.fromkeys(keys, (task,)))
    assert list(start_state(graph, {}, listed).ready) == ["c", "a", "b"]
    assert start_state(graph, {}, listed, ReadyQueue(listed)).ready.take() == "b"
    assert [listed(key) for key in "abc"] == [1, 0, 2]
    with pytest.raises(KeyError):
        listed("d")


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(Selection.PRIORITY),
        Options(Selection.PRIORITY, sizes={None: 1, "y": 1}, budget=1),
        Options(Selection.PRIORITY, sizes={None: 1, "y": 1}, budget=0),
    ],
)
def test_none_is_a_key_like_others(options):
    keys = [None, "y"]
    scheduler = Scheduler(read_graph(dict.fromkeys(keys, (task,)), keys), keys, keys.index, {}, options)
    commands = scheduler.handle(SlotsChanged(1))
    for command in commands:  # it grows
        commands += scheduler.handle(TaskFinished(command.key))
    assert scheduler.done
    assert {command.key for command in commands} == {None, "y"}


# ---- the same commands in every process

PROBE = """
from graphmill.graph import read_graph
from graphmill.scheduler import Options, Scheduler, Selection
from graphmill.scheduler.events import Run, SlotsChanged, TaskFinished

def task(*args): pass

names = [f"task-{i:02}" for i in range(60)]
dsk = {
    name: (task, *[names[i // d] for d in (2, 3, 5) if i // d < i]) for i, name in enumerate(names)
}
ranks = {name: rank for rank, name in enumerate(sorted(names, key=lambda name: name[::-1]))}
for options in (
    Options(),
    Options(Selection.PRIORITY),
    Options(Selection.PRIORITY, sizes=dict.fromkeys(names, 3), budget=20),
):
    scheduler = Scheduler(read_graph(dsk, names[30:]), names[30:], ranks.get, {}, options)
    commands, at = scheduler.handle(SlotsChanged(3)), 0
    while at < len(commands):
        if isinstance(commands[at], Run):
            commands += scheduler.handle(TaskFinished(commands[at].key))
        at += 1
    assert scheduler.done
    print(commands)
"""


def test_the_same_commands_whatever_the_hash_seed():
    source = str(Path(graphmill.__file__).parents[1])
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROBE],
            env={**os.environ, "PYTHONPATH": source, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in "123"
    }
    assert len(printed) == 1
    assert printed.pop().count("Run(") > 100
