"""Memory under a limit: what is started, what goes to disk, and that it always goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmill.graph import read_graph
from graphmill.order import order_graph
from graphmill.scheduler import Options, Scheduler, Selection
from graphmill.scheduler.estimates import AHEAD, SOON_OVER, UNKNOWN, Estimates
from graphmill.scheduler.events import (
    Abort,
    Release,
    RoomChanged,
    Run,
    SlotsChanged,
    Spill,
    TaskFinished,
    TaskTooBig,
)
from graphmill.scheduler.policy import AdmissionQueue
from graphmill.scheduler.room import Room
from graphmill.scheduler.state import start_state

MANY = settings(max_examples=300, deadline=None)
MB = 1 << 20


def task(*_):
    """Stand for a task; it is never run."""


# ---- estimates


def test_tasks_are_expected_to_be_like_others_of_their_layer():
    estimates = Estimates()
    assert estimates.nbytes(("x-1", 0)) is None
    assert estimates.taken(("x-1", 0)) is None
    assert estimates.learn(("x-1", 0), 0.5, 8 * MB, 9 * MB)
    assert not estimates.learn(("x-1", 1), 0.5, 8 * MB, 9 * MB)
    assert estimates.nbytes(("x-1", 2)) == 8 * MB
    assert estimates.taken(("x-1", 2)) == 9 * MB
    assert estimates.nbytes(("x-2", 0)) is None, "another array may be of any size"
    assert estimates.seconds(("x-2", 0)) == 0.5
    assert estimates.seconds("y-3") == UNKNOWN


def test_keys_that_are_strings_are_alike_if_their_names_are():
    estimates = Estimates()
    estimates.learn("load-1f", 0.1, MB, MB)
    assert estimates.nbytes("load-2e") == MB


def test_tokens_that_are_uuids():
    estimates = Estimates()
    estimates.learn(f"load-file-{UUID(int=1)}", 0.1, MB, MB)
    assert estimates.nbytes(f"load-file-{UUID(int=2)}") == MB
    assert estimates.seconds(f"load-file-{UUID(int=3)}") == 0.1
    assert estimates.nbytes(f"store-file-{UUID(int=4)}") is None


def test_a_large_output_is_remembered_longer_than_a_small_one():
    estimates = Estimates()
    estimates.learn(("x", 0), nbytes=8 * MB)
    assert not estimates.learn(("x", 1), nbytes=7 * MB)
    assert 7 * MB < estimates.nbytes(("x", 2)) < 8 * MB
    assert estimates.learn(("x", 2), nbytes=80 * MB)
    assert estimates.nbytes(("x", 2)) == 80 * MB


def test_margins_of_blocks_are_not_taken_for_whole_ones():
    estimates = Estimates()
    estimates.learn(("getitem-1", 3, 0, 0), nbytes=8 * MB, taken=8 * MB)
    estimates.learn(("getitem-1", 2.9, 0, 0), nbytes=0, taken=9)
    assert estimates.nbytes(("getitem-1", 4, 1, 0)) == 8 * MB
    assert estimates.nbytes(("getitem-1", 3.9, 1, 0)) == 0
    assert estimates.nbytes(("getitem-1", 3.1, 1, 0)) is None
    assert estimates.taken(("getitem-1", 1.9, 5, 0)) == 9


def test_tiny_outputs_weigh_nothing():
    estimates = Estimates()
    assert not estimates.learn(("x", 0), nbytes=28)
    assert estimates.nbytes(("x", 1)) == 0


@pytest.mark.parametrize(
    ("seconds", "share"),
    [(1.0, 1.0), (SOON_OVER, 1.0), (SOON_OVER / 2, 0.5), (AHEAD, 0.5), (AHEAD / 8, 0.125), (0.0, 1 / 1024)],
)
def test_a_task_that_is_soon_over_takes_a_part_of_a_worker(seconds, share):
    estimates = Estimates()
    estimates.learn("x", seconds)
    assert estimates.share("x") == share


# ---- the limit


@dataclass
class World:
    """Workers with so much memory, and tasks that take what they take."""

    scheduler: Scheduler
    #: The bytes of each output, and what its task takes besides inputs, with it.
    outputs: dict
    taken: dict
    limit: int
    slots: int
    spills: bool
    #: The task whose output each alias is.
    sources: dict = field(default_factory=dict)
    #: For each output that is there, the keys that have it.
    held: dict = field(default_factory=dict)
    on_disk: set = field(default_factory=set)
    #: For each running task, what it may take.
    running: dict = field(default_factory=dict)
    error: BaseException | None = None
    spilled: int = 0

    def source(self, key):
        return self.sources.get(key, key)

    def resident(self):
        return sum(self.outputs[source] for source in self.held if source not in self.on_disk)

    def free(self):
        return self.limit - self.resident() - sum(self.running.values())

    def in_use(self):
        return {self.source(dep) for key in self.running for dep in self.scheduler.state.dependencies[key]}

    def tell(self, event):
        for command in self.scheduler.handle(event):
            if isinstance(command, Run):
                self.start(command)
            elif isinstance(command, Spill):
                source = self.source(command.key)
                assert command.key in self.held[source]
                assert source not in self.on_disk
                assert source not in self.in_use()
                self.on_disk.add(source)
                self.spilled += self.outputs[source]
            elif isinstance(command, Release):
                if command.key == "data":
                    continue
                source = self.source(command.key)
                self.held[source].remove(command.key)
                if not self.held[source]:
                    del self.held[source]
                    self.on_disk.discard(source)
            elif isinstance(command, Abort):
                self.error = command.error
        self.check()

    def start(self, command):
        alone = not self.running
        self.running[command.key] = command.allowance
        if self.free() < 0:
            assert alone, "a task was started that there is no room for, beside others"
            assert self.on_disk | self.in_use() >= self.held.keys(), "something could have moved"

    def check(self):
        self.scheduler.state.validate()
        in_use = sum(min(may, self.taken.get(key, 0)) for key, may in self.running.items())
        assert self.resident() + in_use <= self.limit or len(self.running) == 1

    def tell_room(self):
        self.tell(RoomChanged(self.free(), self.limit, self.spills))

    def end(self, key):
        may = self.running.pop(key)
        takes = self.taken.get(key, 0)
        if takes > may:
            self.tell(TaskTooBig(key, takes, MemoryError(key)))
        else:
            self.held.setdefault(self.source(key), set()).add(key)
            nbytes = None if key in self.sources else self.outputs[key]
            self.tell(TaskFinished(key, "a value", nbytes, taken=takes))
        self.tell_room()


@st.composite
def worlds(draw):
    layers = draw(st.integers(1, 5))
    width = draw(st.integers(1, 6))
    dsk, aliases, outputs, taken = {"data": 1}, {}, {}, {}
    for layer in range(layers):
        # Outputs of one layer are mostly, but not always, of one size.
        usual, scratch = draw(st.integers(1, 40)), draw(st.integers(0, 20))
        for i in range(width):
            deps = draw(st.sets(st.integers(0, width - 1), max_size=3)) if layer else set()
            dsk[layer, i] = (task, *[(layer - 1, dep) for dep in sorted(deps)])
            if not deps and draw(st.booleans()):
                dsk[layer, i] = (task, "data")
            if len(deps) == 1 and draw(st.booleans()):
                aliases[layer, i] = layer - 1, *deps
                continue
            outputs[layer, i] = MB * (usual if draw(st.integers(0, 3)) else draw(st.integers(1, 40)))
            taken[layer, i] = outputs[layer, i] + MB * (scratch if draw(st.integers(0, 3)) else 0)
    results = [(layers - 1, i) for i in range(width)]
    graph = read_graph(dsk, results)
    graph.aliases.update((key, source) for key, source in aliases.items() if key in graph.tasks)
    slots = draw(st.integers(1, 4))
    limit = draw(st.integers(1, 200)) * MB
    spills = draw(st.booleans())
    room = RoomChanged(limit, limit, spills)
    again = draw(st.sets(st.sampled_from(sorted(outputs))))
    again = {key for key in again if graph.dependencies.get(key, {0}) <= {"data"}}
    recompute = again.__contains__ if draw(st.booleans()) else None
    options = Options(Selection.PRIORITY, estimates=Estimates(), room=room, recompute=recompute)
    priority = order_graph(graph, results=results).priorities.__getitem__
    scheduler = Scheduler(graph, results, priority, {}, options)
    world = World(scheduler, outputs, taken, limit, slots, spills, graph.sources())
    return world, draw(st.randoms(use_true_random=False))


@MANY
@given(worlds())
def test_the_limit_holds_and_every_run_ends(case):
    world, random = case
    world.tell(SlotsChanged(world.slots))
    steps = 0
    while not world.scheduler.done:
        assert world.running, "nothing runs, and nothing is done"
        world.end(random.choice(sorted(world.running)))
        steps += 1
        assert steps < 40 * len(world.scheduler.state.dependencies), "it goes on for ever"
    largest = max(nbytes for key, nbytes in world.taken.items() if key in world.scheduler.state.dependencies)
    if world.error is None:
        assert set().union(*world.held.values()) == world.scheduler.results
    else:
        assert largest > world.limit
    if largest <= world.limit:
        assert world.error is None


def make(dsk, results, *, limit, outputs, taken=None, slots=1, spills=False, recompute=None):
    graph = read_graph(dsk, results)
    room = RoomChanged(limit * MB, limit * MB, spills)
    options = Options(Selection.PRIORITY, estimates=Estimates(), room=room, recompute=recompute)
    priority = order_graph(graph, results=results).priorities.__getitem__
    scheduler = Scheduler(graph, results, priority, {}, options)
    taken = outputs if taken is None else taken
    outputs, taken = ({key: each[key[0]] * MB for key in dsk if each} for each in (outputs, taken))
    return World(scheduler, outputs, taken, limit * MB, slots, spills)


def run(world):
    world.tell(SlotsChanged(world.slots))
    while world.running:
        world.end(min(world.running))
    return world


def all_held_for_one(count):
    dsk = {(0, i): (task, i) for i in range(count)}
    dsk[1, 0] = (task, *[(0, i) for i in range(count)])
    return dsk


def test_nothing_goes_to_disk_while_there_is_room():
    world = run(make(all_held_for_one(9), [(1, 0)], limit=100, outputs=[10, 10]))
    assert world.spilled == 0


def test_what_does_not_fit_goes_to_disk_and_little_more():
    world = run(make(all_held_for_one(20), [(1, 0)], limit=100, outputs=[10, 10]))
    assert world.error is None
    assert 110 * MB <= world.spilled <= 130 * MB


def test_what_is_too_big_beside_others_is_tried_again_alone():
    world = make({(0, i): (task, i) for i in range(2)}, [(0, 0), (0, 1)], limit=100, outputs=[30], slots=2)
    scheduler, error = world.scheduler, MemoryError()
    scheduler.room.estimates.learn((0, 9), taken=5 * MB)
    scheduler.handle(RoomChanged(20 * MB, 20 * MB, spills=False))  # the rest is what processes have
    first = scheduler.handle(SlotsChanged(2))
    assert [command.key for command in first] == [(0, 0), (0, 1)]
    assert scheduler.handle(TaskTooBig((0, 0), 30 * MB, error)) == []
    scheduler.handle(RoomChanged(60 * MB, 60 * MB, spills=False), more=True)  # less, since one has ended
    (again,) = scheduler.handle(TaskFinished((0, 1), "a value", 30 * MB, taken=30 * MB))
    assert again.key == (0, 0)
    assert again.allowance >= 30 * MB


def test_what_a_task_could_have_is_what_is_there_once_it_has_ended():
    world = make({(0, 0): (task, 0)}, [(0, 0)], limit=20, outputs=[30])
    (first,) = world.scheduler.handle(SlotsChanged(1))
    (again,) = world.scheduler.handle(TaskTooBig((0, 0), 30 * MB, MemoryError(), 40 * MB))
    assert (first.key, again.key) == ((0, 0), (0, 0))
    assert again.allowance >= 30 * MB


@pytest.mark.parametrize(("limit", "at_once"), [(1600, 3), (1100, 2), (800, 1), (20, 1)])
def test_where_there_is_little_the_first_task_is_alone(limit, at_once):
    keys = [(0, i) for i in range(4)]
    world = make(dict.fromkeys(keys, (task, 1)), keys, limit=limit, outputs=[4], slots=3)
    world.tell(SlotsChanged(3))
    assert len(world.running) == at_once
    world.end(min(world.running))
    assert len(world.running) == 3, "it is known now that they need little"


@pytest.mark.parametrize(("largest", "at_once"), [(10, 3), (200, 2), (400, 1)])
def test_what_is_not_known_is_expected_to_be_as_large_as_what_was(largest, at_once):
    keys = [("known", 0), *[("new", i) for i in range(4)]]
    world = make(dict.fromkeys(keys, (task, 1)), keys, limit=500, outputs={"known": 1, "new": 1}, slots=3)
    (first,) = world.scheduler.handle(SlotsChanged(3))
    told = world.scheduler.handle(TaskFinished(first.key, "a value", MB, taken=largest * MB))
    assert len([command for command in told if isinstance(command, Run)]) == at_once


def test_for_what_nothing_is_known_of_nothing_goes_to_disk():
    dsk = {("held", i): (task, i) for i in range(8)}
    dsk |= {("other", 0): (task, 1), ("end", 0): (task, ("other", 0), *[("held", i) for i in range(8)])}
    world = make(dsk, [("end", 0)], limit=100, outputs=dict.fromkeys(("held", "other", "end"), 10))
    assert run(world).error is None
    assert world.spilled == 0


def test_what_should_fit_alone_is_tried_again_a_few_times():
    # What a task had may be held for a moment longer, by a thread of a library.
    world = make({(0, 0): (task, 0)}, [(0, 0)], limit=50, outputs=[30])
    too_big, commands = MemoryError(), world.scheduler.handle(SlotsChanged(1))
    tries = 0
    while isinstance(commands[0], Run):
        tries += 1
        commands = world.scheduler.handle(TaskTooBig((0, 0), 30 * MB, too_big, 10 * MB))
    assert commands == [Abort((0, 0), too_big)]
    assert tries == 3


def test_what_is_too_big_alone_ends_the_run():
    world = make({(0, 0): (task, 0)}, [(0, 0)], limit=20, outputs=[30])
    world.tell(SlotsChanged(1))
    world.end((0, 0))
    assert isinstance(world.error, MemoryError)


def test_tasks_are_sorted_anew_when_their_size_becomes_known():
    dsk = {(name, i): (task, i) for name in "ab" for i in range(8)}
    scheduler = make(dsk, list(dsk), limit=1000, outputs=[]).scheduler
    ready = scheduler.state.ready
    grows = {}
    commands = scheduler.handle(SlotsChanged(2))
    while commands:
        key = commands.pop(0).key
        commands += scheduler.handle(TaskFinished(key, "a value", 10 * MB, 0, 1.0, 10 * MB))
        grows[key] = set(ready._growing)
        assert grows[key] == {key for key in ready if ready.growth(key) > 0}
    assert grows["a", 1] == {("a", i) for i in range(4, 8)}
    assert grows["b", 1] == {("b", i) for i in range(4, 8)}


def test_kinds_of_one_task_each_cost_no_look_at_all_the_others(monkeypatch):
    looks = []
    growth = AdmissionQueue.growth
    monkeypatch.setattr(AdmissionQueue, "growth", lambda *both: looks.append(0) or growth(*both))
    dsk = {f"x{i}": (task, i) for i in range(2000)}
    scheduler = make(dsk, list(dsk), limit=100_000, outputs=[]).scheduler
    commands = scheduler.handle(SlotsChanged(1))
    while commands:
        commands = scheduler.handle(TaskFinished(commands[0].key, "a value", MB, 0, 1.0, MB))
    assert scheduler.done
    assert len(looks) <= 20 * len(dsk)


def test_what_is_better_made_again_is_let_go_once_and_then_goes_to_disk():
    dsk = {(0, i): (task, i) for i in range(20)}
    dsk |= {(1, 0): (task, *[(0, i) for i in range(10)]), (1, 1): (task, *[(0, i) for i in range(20)])}
    world = make(dsk, [(1, 0), (1, 1)], limit=100, outputs=[10, 1], recompute=lambda key: key[1] % 2 == 0)
    starts = []
    started = world.start
    world.start = lambda command: starts.append(command.key) or started(command)
    run(world)
    assert world.error is None
    again = {key for key in starts if starts.count(key) > 1}
    assert again
    assert all(key[0] == 0 and key[1] % 2 == 0 and starts.count(key) == 2 for key in again)
    assert world.spilled


def room_with(*, free, running=()):
    """Make a room in which four values lie, the first of which is used next, and a result."""
    cache = {("x", i): "a value" for i in range(4)} | {"result": "a value"}
    graph = read_graph(
        {("use", i): (task, ("x", i)) for i in range(4)} | {("x", i): (task,) for i in range(4)}, cache=cache
    )
    priority = {("use", i): i for i in range(4)}.__getitem__
    state = start_state(graph, cache, priority)
    state.running.update(running)
    return Room(Estimates(), priority, {"result"}, free=free, capacity=32 * MB), state


SIZES = dict.fromkeys([("x", 0), ("x", 1), ("x", 2), ("x", 3), "result"], 10 * MB)


@pytest.mark.parametrize(
    ("wanted", "running", "chosen"),
    [
        (5, (), []),
        (10, (), ["result"]),
        (20, (), ["result", ("x", 3)]),
        (20, [("use", 3)], ["result", ("x", 2)]),
        (99, (), ["result", ("x", 3), ("x", 2), ("x", 1), ("x", 0)]),
        (99, [("use", 1), ("use", 2)], ["result", ("x", 3), ("x", 0)]),
    ],
)
def test_what_is_used_last_goes_first(wanted, running, chosen):
    room, state = room_with(free=8 * MB, running=running)
    assert room.victims(wanted * MB, ("use", 0), SIZES, state) == chosen


def test_tasks_of_known_need_are_given_little_more():
    room, _ = room_with(free=100 * MB)
    assert room.start("x", 0, 2) == 50 * MB
    room.estimates.learn("y", taken=8 * MB)
    assert room.start("y", 8 * MB, 2) == 10 * MB
    room.estimates.learn("z", taken=10)
    assert [room.start(f"z-{i}", 10, 2) for i in range(40)] == [10 + (256 << 10)] * 40
    assert room.free >= 29 * MB


def test_what_is_on_disk_or_small_does_not_go():
    room, state = room_with(free=0)
    room.spill(("x", 3), 10 * MB)
    sizes = SIZES | {"result": 1000}
    assert room.victims(99 * MB, ("use", 0), sizes, state) == [("x", 2), ("x", 1), ("x", 0)]


def test_a_task_that_cannot_fit_fails_with_what_the_driver_says():
    world = run(make({(0, 0): (task,), (1, 0): (task, (0, 0))}, [(1, 0)], limit=20, outputs=[5, 30]))
    assert isinstance(world.error, MemoryError)
    assert world.error.args == ((1, 0),)


def test_fewer_run_at_once_before_anything_fails():
    world = make(
        {(0, i): (task, i) for i in range(4)}, [(0, i) for i in range(4)], limit=50, outputs=[1], taken=[45]
    )
    world.slots = 3
    most = 0
    world.tell(SlotsChanged(3))
    while world.running:
        if world.scheduler.room.estimates.taken((0, 0)):
            most = max(most, len(world.running))
        world.end(min(world.running))
    assert world.error is None
    assert most == 1


def test_a_limit_that_is_passed_already_stops_nothing():
    world = make(all_held_for_one(3), [(1, 0)], limit=100, outputs=[1, 1])
    world.tell(RoomChanged(-MB, 100 * MB))
    world.tell(SlotsChanged(2))
    assert len(world.scheduler.state.running) == 1
