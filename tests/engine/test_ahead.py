"""Quick tasks go along with those that they wait for: answers, and whatever else shows, are as without."""

import copy
import os
import random
import signal
import time
import warnings
from collections import Counter
from operator import add, neg
from pathlib import Path

import numpy as np
import pytest

from graphmill.callbacks import Callback
from graphmill.engine.ahead import Ahead
from graphmill.engine.run import Run
from graphmill.errors import WorkerDied
from graphmill.graph import read_graph
from graphmill.local import get_sync
from graphmill.order import order_graph
from graphmill.scheduler import start_state
from graphmill.scheduler.estimates import Estimates
from graphmill.workers.work import Batch

#: As many numbers lie in shared memory, and are no more than a task that goes along may take.
BIG = 100_000

# ---- which tasks go along


def ahead_of(dsk, results, done=(), *, shows=False, seconds=lambda _: 0.001):
    """What could go along in a graph of which some tasks are done."""
    graph = read_graph(dsk, results, {})
    priority = order_graph(graph, results=results).priorities.__getitem__
    state = start_state(graph, {}, priority)
    for key in done:
        state.cache[key] = None
        state.forget(key)
        state.wake(key)
    return Ahead(state, results, priority, seconds, shows=shows)


def followers(ahead, tasks, seconds=1.0, most=100, *, in_line=False):
    return [key for key, _ in ahead.followers(tasks, seconds, most, in_line=in_line)]


CHAIN = {"a": (neg, 1), "b": (neg, "a"), "c": (neg, "b"), "d": (neg, "c")}
#: Two halves, each of which waits for one task, and what needs both.
FORK = {"a": (neg, 1), "l": (neg, "a"), "r": (abs, "a"), "both": (add, "l", "r")}


def test_a_chain_goes_along_as_far_as_there_is_time_and_place():
    ahead = ahead_of(CHAIN, ["d"])
    assert followers(ahead, ["a"]) == ["b", "c", "d"]
    assert followers(ahead, ["a"], seconds=0.0025) == ["b", "c"]
    assert followers(ahead, ["a"], most=1) == ["b"]
    assert followers(ahead, ["a"], in_line=True) == ["b", "c", "d"]


def test_what_others_could_run_meanwhile_does_not_go_along_where_they_are_idle():
    ahead = ahead_of(FORK, ["both"])
    assert sorted(followers(ahead, ["a"])) == ["both", "l", "r"]
    assert followers(ahead, ["a"], in_line=True) == []


def test_a_task_that_waits_for_something_else_does_not_go_along():
    dsk = {"a": (neg, 1), "b": (neg, 2), "sum": (add, "a", "b"), "end": (neg, "sum")}
    assert followers(ahead_of(dsk, ["end"]), ["a"]) == []
    assert followers(ahead_of(dsk, ["end"], done=["b"]), ["a"]) == ["sum", "end"]
    assert followers(ahead_of(dsk, ["end"]), ["a", "b"]) == ["sum", "end"]


def test_a_task_that_cannot_go_along_keeps_back_what_needs_it():
    ahead = ahead_of(CHAIN, ["d"], seconds=lambda key: None if key == "c" else 0.001)
    assert followers(ahead, ["a"]) == ["b"]


def test_many_users_and_many_inputs_are_not_looked_at():
    fan = {"a": (neg, 1), **{("u", i): (neg, "a") for i in range(33)}}
    assert followers(ahead_of(fan, [("u", i) for i in range(33)]), ["a"]) == []
    inputs = [("i", n) for n in range(33)]
    dsk = {**dict.fromkeys(inputs, (neg, 1)), "sum": (sum, inputs)}
    assert followers(ahead_of(dsk, ["sum"]), inputs) == []


def test_values_for_the_batch_alone():
    places = {"a": 0, "l": 1, "r": 2, "both": 3}
    ahead = ahead_of(FORK, ["both"])
    assert ahead.inner(places, {"l", "r", "both"}) == ((0, 2), (1, 1), (2, 1))
    assert ahead.inner({"a": 0, "l": 1}, {"l"}) == ()  # "r" needs it, too
    assert ahead_of(FORK, ["both", "l"]).inner(places, {"l", "r", "both"}) == ((0, 2), (2, 1))
    assert ahead_of(FORK, ["both"], shows=True).inner(places, {"l", "r", "both"}) == ()


# ---- on workers


@pytest.fixture
def quick(engine):
    """Runs graphs whose keys are ("quick", i), of which it is known that they are quick and give little."""
    known = {("quick", i): (nothing, i) for i in range(200)}
    for _ in range(2):
        engine.get(known, list(known))
    assert engine.estimates.seconds(("quick", 0)) < 0.001
    assert engine.estimates.nbytes(("quick", 0)) == 0

    def run(tasks, *wanted, **kwargs):
        dsk = {("quick", i): replaced(task) for i, task in enumerate(tasks)}
        keys = [("quick", i) for i in wanted] or [("quick", len(tasks) - 1)]
        found = engine.get(dsk, keys, **kwargs)
        return found if wanted else found[0]

    run.engine = engine
    return run


class At(int):
    """In a task of these tests, the number of the task whose value is meant."""


def replaced(task):
    return tuple(("quick", int(part)) if isinstance(part, At) else part for part in task)


@pytest.fixture
def batches(quick, monkeypatch):
    """The batches that workers are given."""
    found = []
    submit = quick.engine.crew.submit

    def noted(flight):
        if isinstance(flight.job, Batch):
            found.append(flight.job)
        submit(flight)

    monkeypatch.setattr(quick.engine.crew, "submit", noted)
    return found


@pytest.fixture
def all_small(monkeypatch):
    """Large results do not keep others of their kind from going along."""
    monkeypatch.setattr(Estimates, "nbytes", lambda self, key: 0)


def test_a_chain_takes_few_messages_and_its_values_stay_where_they_are(quick, batches, monkeypatch):
    news = []
    keep = Ahead.keep

    def noted(self, key, outcome, *rest):
        news.append(outcome)
        keep(self, key, outcome, *rest)

    monkeypatch.setattr(Ahead, "keep", noted)
    assert quick([(nothing, 7), *[(one_more, At(i)) for i in range(400)]]) == 407
    assert len(batches) < 100
    assert sum(batch.followers for batch in batches) > 300
    assert sum(isinstance(outcome, int) for outcome in news) > 200


def test_values_that_are_wanted_come_from_the_middle_of_a_chain(quick, batches):
    chain = [(nothing, 0), *[(one_more, At(i)) for i in range(100)]]
    assert quick(chain, 0, 50, 51, 99, 100) == (0, 50, 51, 99, 100)
    assert sum(batch.followers for batch in batches) > 50


def test_each_task_runs_once(quick, batches, tmp_path):
    log = str(tmp_path / "log")
    tasks = [(noting, log, i, 0) for i in range(10)]
    tasks += [(noting, log, i, At(i - 10), At((i * 7) % (i - 9))) for i in range(10, 150)]
    wanted = get_sync(
        {("quick", i): replaced((no_noting, *task[1:])) for i, task in enumerate(tasks)},
        [("quick", i) for i in range(140, 150)],
    )
    assert quick(tasks, *range(140, 150)) == wanted
    counted = Counter(Path(log).read_text().split())
    assert set(counted.values()) == {1}
    assert sum(batch.followers for batch in batches) > 50


def test_a_task_that_changes_its_input_changes_that_of_no_other(quick, batches):
    tasks = [(make_list,), (make_list,)]  # one for each worker
    tasks += [(appended, At(i % 2), i) for i in range(2, 12)]
    tasks += [(len, At(0)), (len, At(1))]
    assert quick(tasks, *range(2, 14)) == (*([1, 2, i] for i in range(2, 12)), 2, 2)
    assert sum(batch.followers for batch in batches) >= 10


def test_a_task_that_gives_the_same_object_each_time(quick, batches):
    tasks = [(shared_list,), (appended, At(0), 1), (shared_list,), (appended, At(2), 2)]
    tasks += [(add, At(1), At(3))]
    assert quick(tasks) == [0, 1, 0, 2]


def test_the_error_of_a_task_that_went_along_is_its_own(quick, batches):
    chain = [(nothing, 3), *[(one_more, At(i)) for i in range(20)], (fails, At(20)), (one_more, At(21))]
    with pytest.raises(ZeroDivisionError) as caught:
        quick(chain)
    assert "raised by the task ('quick', 21)" in caught.value.__notes__
    assert quick(chain[:21]) == 23


def test_what_follows_on_an_error_is_not_run(quick, batches, tmp_path):
    path = tmp_path / "ran"
    with pytest.raises(ZeroDivisionError):
        quick([(nothing, 1), (fails, At(0)), (touch, str(path), At(1))])
    assert not path.exists()


def test_a_failed_task_that_went_along_is_run_again_for_a_debugger(quick):
    chain = [(nothing, 3), (one_more, At(0)), (fails, At(1))]
    with pytest.raises(ZeroDivisionError) as caught:
        quick(chain, rerun_exceptions_locally=True)
    assert any("run again in this process" in note for note in caught.value.__notes__)


def test_large_values_and_warnings_of_tasks_that_go_along(quick, batches, all_small):
    tasks = [(nothing, 5), (large, At(0)), (one_more, At(1)), (total, At(2))]
    tasks += [(nothing, 1), (warns, At(4)), (one_more, At(5)), (add, At(3), At(6))]
    with pytest.warns(UserWarning, match="seven"):
        assert quick(tasks) == 6 * BIG + 2
    assert sum(batch.followers for batch in batches) > 1


def test_callbacks_see_all_values(quick, batches):
    seen = {}
    with Callback(posttask=lambda key, value, dsk, state, worker: seen.update({key[1]: value})):
        assert quick([(nothing, 0), *[(one_more, At(i)) for i in range(50)]]) == 50
    assert seen == {i: i for i in range(51)}
    assert sum(batch.followers for batch in batches) > 20


def test_callbacks_hear_of_tasks_in_an_order_in_which_they_can_run(quick):
    heard = []
    tasks = [(nothing, i) for i in range(30)] + [(one_more, At(i)) for i in range(30)] + [(one_more, At(30))]
    with Callback(
        pretask=lambda key, *_: heard.append(("begin", key[1])),
        posttask=lambda key, *_: heard.append(("end", key[1])),
    ):
        quick(tasks, *range(30, 61))
    for i in range(30, 60):
        assert heard.index(("end", i - 30)) < heard.index(("begin", i)) < heard.index(("end", i))


def test_a_worker_that_dies_of_a_task_that_went_along(quick, tmp_path):
    chain = [(nothing, 1), (one_more, At(0)), (killed_once, str(tmp_path / "killed"), At(1))]
    chain += [(one_more, At(2))]
    assert quick(chain) == 3


def test_a_task_that_always_kills_its_worker_kills_few(quick, tmp_path):
    log = tmp_path / "log"
    chain = [
        (nothing, 1),
        *[(noting, str(log), i, At(i)) for i in range(60)],
        (always_kills, str(log), At(60)),
    ]
    with pytest.raises(WorkerDied, match=r"\('quick', 61\)"):
        quick(chain)
    counted = Counter(log.read_text().split())
    assert counted.pop("killed") == 5  # once with the others, then by itself, and three times again
    assert max(counted.values()) <= 2, "what went along with it does so no more"


def test_a_batch_whose_tasks_take_long_ends_early(quick, batches, monkeypatch):
    told = []
    look_at = Run._look_at_batch

    def noted(self, flight, batch, worker):
        told.append((len(batch.outcomes), len(flight.job.calls)))
        look_at(self, flight, batch, worker)

    monkeypatch.setattr(Run, "_look_at_batch", noted)
    n = 40
    tasks = [(nothing, i) for i in range(n)] + [(slow, At(i)) for i in range(n)]
    assert quick(tasks, *range(n, 2 * n)) == tuple(range(n))
    assert any(done < given for done, given in told)
    assert sum(batch.followers for batch in batches) > 10


def test_writes_of_tasks_that_go_along_arrive(quick):
    da = pytest.importorskip("dask.array")
    target = np.zeros(400)
    x = da.ones(400, chunks=4)
    for _ in range(3):
        target[:] = 0
        da.store((x + 1).map_blocks(np.negative), target, scheduler=quick.engine.get)
        assert (target == -2).all()


@pytest.mark.parametrize("way", ["large", "warns", "fails"])
def test_a_task_that_has_more_to_tell_runs_once(quick, batches, all_small, tmp_path, way):
    log = tmp_path / "log"
    tasks = [(nothing, 1), (noting_and, str(log), way, At(0))]
    if way == "fails":
        with pytest.raises(ZeroDivisionError):
            quick(tasks)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quick(tasks)
    assert log.read_text() == "1\n"
    assert sum(batch.followers for batch in batches) == 1


def test_nothing_is_left_of_a_run_that_is_stopped_with_tasks_ahead(quick, batches, all_small):
    engine = quick.engine
    before = engine.memory().live
    dsk = {("quick", i): (nothing, i) for i in range(80)}
    dsk |= {("quick", i): (large, ("quick", i - 80)) for i in range(80, 160)}
    # Told before those that went along are asked for.
    dsk |= {("quick", i): (fails, i) for i in range(0, 80, 20)}
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            engine.get(dsk, [("quick", i) for i in range(160)])
    assert engine.memory().live == before
    assert sum(batch.followers for batch in batches) > 10


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs(quick, seed):
    dice = random.Random(seed)
    dsk, values = {}, []
    for i in range(300):
        earlier = sorted({dice.randrange(max(0, i - 20), i) for _ in range(dice.randint(0, 3))} if i else ())
        inputs = [("quick", j) for j in earlier]
        function = dice.choice([joined, changed, first, many])
        dsk["quick", i] = (function, i, inputs)
        values.append(function(i, copy.deepcopy([values[j] for j in earlier])))  # as if each had its own
    wanted = sorted({299, *(dice.randrange(300) for _ in range(20))})
    for _ in range(3):
        found = quick.engine.get(dsk, [("quick", i) for i in wanted])
        for i, value in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(value, values[i])


def nothing(x):
    return x


def one_more(x):
    return x + 1


def noting(path, number, *_):
    with open(path, "a") as file:  # noqa: PTH123 - one write, so that those of others do not mix with it
        file.write(f"{number}\n")
    return number


def no_noting(path, number, *_):
    return number


def noting_and(path, way, x):
    noting(path, x)
    return {"large": large, "warns": warns, "fails": fails}[way](x)


def make_list():
    return [1, 2]


_SHARED = [0]


def shared_list():
    return _SHARED


def appended(values, value):
    values.append(value)
    return values


def fails(x):
    raise ZeroDivisionError(x)


def touch(path, x):
    Path(path).touch()
    return x


def large(x):
    return np.full(BIG, x)


def total(array):
    return int(array.sum())


def warns(x):
    warnings.warn("seven", UserWarning, stacklevel=1)
    return x


def killed_once(path, x):
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return x


def always_kills(path, x):
    with open(path, "a") as file:  # noqa: PTH123 - one write
        file.write("killed\n")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)


def slow(x):
    time.sleep(0.03)
    return x


def joined(i, inputs):
    return np.concatenate([np.ravel(each)[:50] for each in [[i], *inputs]])


def changed(i, inputs):
    for each in inputs:
        each[...] += i
    return inputs[-1] if inputs else np.arange(3.0)


def first(i, inputs):
    return np.array([np.ravel(each)[0] for each in [[i], *inputs]])


def many(i, inputs):
    return np.full(300, sum(each.sum() for each in inputs) % 1000 + i)
