"""How many bytes may be live: what the order needs, and more where workers would have nothing to do."""

import pytest

from graphmill.engine import budget
from graphmill.engine.budget import Budget
from graphmill.graph import read_graph
from graphmill.order import measure_order, order_graph
from graphmill.scheduler.estimates import Estimates

BLOCK = 100 << 20
WORKERS = 2
#: Live bytes that make it worth to look.
MUCH = 2 * BLOCK


def combine(*_):
    """Stand for a task; it is never run."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to, in seconds."""
    now = [100.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def watched(clock):
    """The budget of a run that reads blocks, each needed with its neighbour, whose sizes are known."""
    dsk = {("read", i): (combine, i) for i in range(9)}
    dsk |= {("pair", i): (combine, ("read", i), ("read", i + 1)) for i in range(8)}
    results = [("pair", i) for i in range(8)]
    graph = read_graph(dsk, results)
    estimates = Estimates()
    made = Budget(graph, order_graph(graph, results=results).priorities, results, estimates, WORKERS)
    estimates.learn(("read", 0), 1.0, BLOCK, BLOCK)
    estimates.learn(("pair", 0), 1.0, 0, BLOCK)
    return made


def test_it_is_what_the_order_needs(watched):
    needed = watched.look(1, MUCH)
    assert watched.peak + BLOCK <= needed < 5 * BLOCK
    assert watched.look(0, MUCH) is None, "nothing is new"


def test_it_grows_by_a_block_while_workers_have_nothing_to_do(watched, clock):
    needed, found = watched.look(1, MUCH), []
    for _ in range(10):
        clock[0] += 1
        watched.idle(0.5)
        found.append(watched.look(1, MUCH))
    assert found[:4] == [needed + more * BLOCK for more in range(1, 5)]
    assert found[4:] == [None] * 6, "not without end"


def test_it_stays_where_they_hardly_ever_wait(watched, clock):
    watched.look(1, MUCH)
    for _ in range(10):
        clock[0] += 1
        watched.idle(0.1)
        assert watched.look(1, MUCH) is None


def test_a_short_wait_tells_nothing(watched, clock):
    watched.look(1, MUCH)
    clock[0] += 0.1
    watched.idle(0.2)
    assert watched.look(1, MUCH) is None


def test_what_must_exceed_memory_is_told_by_known_sizes_alone(watched):
    watched.look(1, MUCH)
    blocks = watched.peak // BLOCK
    assert blocks >= 2, "a block and its neighbour"
    assert watched.must_exceed(BLOCK)
    assert not watched.must_exceed(blocks * BLOCK)


def test_a_guess_that_exceeds_memory_tells_nothing(clock):
    # Of each block, four of something unknown are made, all of which are held for one task.
    dsk = {("read", i): (combine, i) for i in range(4)}
    dsk |= {("made", i, j): (combine, ("read", i)) for i in range(4) for j in range(4)}
    dsk["last"] = (combine, *[key for key in dsk if key[0] == "made"])
    dsk["end"] = (combine, "last")
    graph, estimates = read_graph(dsk, ["end"]), Estimates()
    made = Budget(graph, order_graph(graph, results=["end"]).priorities, ["end"], estimates, WORKERS)
    estimates.learn(("read", 0), 1.0, BLOCK, BLOCK)
    made.look(1, MUCH)
    clock[0] += 60  # so that it may be measured anew
    assert made.peak > 2 * BLOCK
    assert not made.must_exceed(2 * BLOCK), "nobody knows yet"
    guessed = made.peak
    estimates.learn(("made", 0, 0), 1.0, 100, 100)
    assert made.look(2, MUCH) is not None, "it is known that they weigh nothing"
    assert made.peak < guessed
    estimates.learn(("made", 0, 1), 1.0, BLOCK, BLOCK)
    made.look(10, MUCH)
    assert made.must_exceed(2 * BLOCK)


def test_nothing_is_measured_while_little_is_held(watched, clock):
    assert watched.look(1, 31 << 20) is None
    clock[0] += 1
    assert watched.look(1, 31 << 20) is None
    assert watched.look(1, 32 << 20) is not None


def test_it_is_measured_early_where_much_is_held(watched):
    assert watched.look(1, 127 << 20) is None
    assert watched.look(1, 128 << 20) is not None


def test_measuring_takes_a_small_part_of_the_time(watched, clock, monkeypatch):
    def slowly(*given, **named):
        clock[0] += 1
        return measure_order(*given, **named)

    monkeypatch.setattr(budget, "measure_order", slowly)
    assert watched.look(1, MUCH) is not None
    looks = []
    for size in range(2, 60):
        clock[0] += 1
        watched._estimates.learn((f"read-{size}", 0), 1.0, size * BLOCK, BLOCK)
        before = clock[0]
        watched.look(10, MUCH)
        looks.append(clock[0] - before)
    assert 1 <= sum(looks) <= 4, "in a minute, at a second each"
