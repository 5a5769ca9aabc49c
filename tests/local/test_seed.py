"""The contract that the engine starts from, row by row. Each comment quotes the row it tests."""

import logging
import queue
import sys
from multiprocessing.pool import ThreadPool
from operator import add
from typing import ClassVar

import pytest

import graphmill.graph
import graphmill.local
import graphmill.order
from graphmill import config
from graphmill.local import (
    Callback,
    apply_sync,
    default_get_id,
    default_pack_exception,
    execute_task,
    finish_task,
    get_async,
    get_sync,
    identity,
    local_callbacks,
    nested_get,
    queue_get,
    release_data,
    reraise,
    start_state_from_dask,
    unpack_callbacks,
)
from graphmill.order import order, sortkey
from graphmill.scheduler.state import NO_TASK


def inc(x):
    return x + 1


def fail(*args):
    raise ZeroDivisionError("no")


def seed_graph():
    return {"x": 1, "y": 2, "z": (inc, "x"), "w": (add, "z", "y")}


# "All are importable from `graphmill.local` unless said otherwise."


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            graphmill.local,
            "start_state_from_dask execute_task finish_task release_data nested_get get_async "
            "get_sync apply_sync default_get_id default_pack_exception identity queue_get reraise "
            "local_callbacks unpack_callbacks Callback",
        ),
        (graphmill.order, "order sortkey"),
        (
            graphmill.graph,
            "flatten reverse_dict get_dependencies has_tasks istask ishashable toposort isdag",
        ),
    ],
)
def test_names_are_importable_from_where_the_table_says(module, names):
    assert [name for name in names.split() if not callable(getattr(module, name, None))] == []


# | start_state_from_dask(dsk, cache=None, sortkey=None) | the state of a graph before anything ran


def test_start_state():
    state = start_state_from_dask(seed_graph())
    assert state["cache"] == {"x": 1, "y": 2}
    assert state["dependencies"] == {"w": {"z", "y"}, "x": set(), "y": set(), "z": {"x"}}
    assert state["dependents"] == {"w": set(), "x": {"z"}, "y": {"w"}, "z": {"w"}}
    assert state["finished"] == state["released"] == state["running"] == set()
    assert state["ready"] == ["z"]
    assert state["waiting"] == {"w": {"z"}}
    assert state["waiting_data"] == {"x": {"z"}, "y": {"w"}, "z": {"w"}}


@pytest.mark.parametrize("data", [1, "text", None, [1, 2], {"a": 1}, (1, 2), (), object()])
def test_start_state_puts_data_in_the_cache(data):
    # "A value that holds no task is data and goes to the cache"
    state = start_state_from_dask({"d": data, "t": (inc, "d")})
    assert state["cache"] == {"d": data}
    assert state["ready"] == ["t"]


def test_start_state_does_not_compute_again_what_the_cache_has():
    # "keys already in a given cache are not computed again"
    cache = {"z": 10}
    state = start_state_from_dask(seed_graph(), cache=cache)
    assert state["cache"] is cache
    assert state["ready"] == ["w"]
    assert state["waiting"] == {}
    assert get_sync(seed_graph(), "w", cache={"z": 10}) == 12


def test_start_state_pops_the_best_priority_first():
    # "`ready` is sorted so that `pop()` gives the task with the best static priority"
    ranks = {"c": 2, "a": 0, "b": 1}
    dsk = dict.fromkeys(ranks, (inc, 0))
    state = start_state_from_dask(dsk, sortkey=ranks.__getitem__)
    assert [state["ready"].pop() for _ in range(3)] == ["a", "b", "c"]


# | state fields |


def test_state_fields():
    # "constant: dependencies, dependents. Data: cache, released. Jobs: ready, running, finished,
    # waiting, waiting_data"
    state = start_state_from_dask(seed_graph())
    assert set(dict(state)) == set(
        "dependencies dependents cache released ready running finished waiting waiting_data".split()
    )
    assert state.waiting is state["waiting"]
    assert "waiting" in state
    assert "wating" not in state
    with pytest.raises(KeyError):
        state["wating"]
    with pytest.raises(KeyError):
        state["wating"] = {}


def test_ready_is_a_last_in_first_out_stack():
    ready = start_state_from_dask({})["ready"]
    ready.push(["a"])
    ready.push(["c", "b"])
    assert [ready.take() for _ in range(3)] == ["b", "c", "a"]
    assert ready.take() is NO_TASK


# | task selection |


def order_of_running(dsk, keys):
    seen = []
    get_sync(dsk, keys, callbacks=Callback(pretask=lambda key, dsk, state: seen.append(key)))
    return seen


def test_depth_before_breadth():
    # "last in, first out: the tasks just made ready run first, depth before breadth"
    dsk = {}
    for chain in "abc":
        dsk[chain, 0] = (inc, 0)
        dsk[chain, 1] = (inc, (chain, 0))
        dsk[chain, 2] = (inc, (chain, 1))
    seen = order_of_running(dsk, [(chain, 2) for chain in "abc"])
    chains = [chain for chain, _ in seen]
    assert sorted(seen) == sorted(dsk)
    assert all(len(set(chains[at : at + 3])) == 1 for at in (0, 3, 6)), seen


def test_several_made_ready_at_once_run_by_static_priority():
    # "several made ready at once are pushed in order of static priority, so that the better runs
    # first"
    dsk = {"root": (inc, 0), **{("leaf", i): (inc, "root") for i in range(6)}}
    leaves = [key for key in dsk if key != "root"]
    ranks = order(dsk)
    assert order_of_running(dsk, leaves) == ["root", *sorted(leaves, key=ranks.__getitem__)]


# | order(dsk) (graphmill.order) |


def test_order_gives_each_key_a_priority():
    # "static priorities {key: int}"
    dsk = seed_graph()
    ranks = order(dsk)
    assert set(ranks) == set(dsk)
    assert all(type(rank) is int for rank in ranks.values())
    assert len(set(ranks.values())) == len(dsk)
    assert ranks["x"] < ranks["z"] < ranks["w"]


def test_order_breaks_ties_predictably():
    keys = [("leaf", i) for i in range(8)] + [f"s{i}" for i in range(8)] + [1, 2.5, b"b"]
    dsk = dict.fromkeys(keys, (inc, 0))
    dsk["sum"] = (sum, keys)
    assert order(dsk) == order(dict(dsk))


def test_keys_of_mixed_types_are_fine():
    # "keys of mixed types (strings, tuples, numbers, bytes) are fine"
    keys = ["s", ("t", 1), ("t", "u"), 7, 2.5, b"bytes"]
    dsk = {key: (inc, i) for i, key in enumerate(keys)}
    dsk["sum"] = (sum, list(keys))
    assert len(set(order(dsk).values())) == len(dsk)
    assert get_sync(dsk, "sum") == sum(range(1, 7))


def test_sortkey():
    assert sortkey("Hello") == ("str", "Hello")
    assert sortkey(("x", 1)) == ("tuple", ("x", 1))


# | execute_task(key, task_info, dumps, loads, get_id, pack_exception) |


def test_execute_task():
    # "runs one task where the worker is; returns (key, dumped (result, worker id), False)"
    answer = execute_task("z", "packed", repr, lambda info: ((inc, "x"), {"x": 1}), lambda: 7, fail)
    assert answer == ("z", "(2, 7)", False)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_execute_task_catches_base_exception(kind):
    # "or (key, packed exception, True); catches `BaseException`"
    def raiser():
        raise kind("why")

    def pack(error, dumps):
        return dumps(type(error)), str(error)

    key, packed, failed = execute_task("z", ((raiser,), {}), identity, identity, fail, pack)
    assert (key, packed, failed) == ("z", (kind, "why"), True)


# | finish_task(dsk, key, state, results, sortkey, delete=True, release_data=release_data) |


def start(state, key, value):
    assert state.ready.pop() == key
    state.running.add(key)
    state.cache[key] = value


def test_finish_task():
    # "moves dependents whose last input this was to ready; takes the key off its inputs'
    # `waiting_data`; releases an input as soon as nobody waits for it and it is not an asked-for
    # result; marks finished"
    dsk = seed_graph()
    state = start_state_from_dask(dsk)
    start(state, "z", 2)
    assert finish_task(dsk, "z", state, {"w"}, order(dsk).__getitem__) is state
    assert state["ready"] == ["w"]
    assert state["waiting"] == {}
    assert state["waiting_data"] == {"y": {"w"}, "z": {"w"}}
    assert state["released"] == {"x"}
    assert state["cache"] == {"y": 2, "z": 2}
    assert state["finished"] == {"z"}
    assert state["running"] == set()
    state.validate()


def test_finish_task_keeps_asked_for_results():
    dsk = seed_graph()
    state = start_state_from_dask(dsk)
    start(state, "z", 2)
    finish_task(dsk, "z", state, {"x", "w"}, order(dsk).__getitem__)
    assert state["released"] == set()
    assert state["cache"]["x"] == 1


def test_finish_task_calls_the_given_release_data():
    dsk = seed_graph()
    state = start_state_from_dask(dsk)
    start(state, "z", 2)
    calls = []
    finish_task(
        dsk,
        "z",
        state,
        {"w"},
        order(dsk).__getitem__,
        delete=False,
        release_data=lambda key, state, delete: calls.append((key, delete)),
    )
    assert calls == [("x", False)]


# | release_data(key, state, delete=True) |


def test_release_data():
    # "drops waiting_data[key], adds to released, deletes from the cache"
    state = start_state_from_dask(seed_graph())
    state["waiting_data"]["x"] = set()
    release_data("x", state)
    assert "x" not in state["waiting_data"]
    assert state["released"] == {"x"}
    assert state["cache"] == {"y": 2}


def test_release_data_asserts_nobody_waits():
    state = start_state_from_dask(seed_graph())
    with pytest.raises(AssertionError, match="'x' is still waited for"):
        release_data("x", state)
    assert state["cache"] == {"x": 1, "y": 2}


def test_release_data_may_leave_the_cache_alone():
    state = start_state_from_dask(seed_graph())
    state["waiting_data"]["x"] = set()
    release_data("x", state, delete=False)
    assert state["released"] == {"x"}
    assert state["cache"] == {"x": 1, "y": 2}


# | nested_get(ind, coll) |


def test_nested_get():
    assert nested_get([[1, 0], [0, 1]], "abc") == (("b", "a"), ("a", "b"))
    assert nested_get(1, "abc") == "b"


# | get_async(apply_async, num_workers, dsk, result, ...) |


def test_get_async_over_anything_with_apply_async():
    # "the general loop for anything with apply_async(func, args=(), kwds={}, callback=None)"
    calls = []

    def apply_async(func, args=(), kwds={}, callback=None):  # noqa: B006 - the contract's words
        calls.append(func)
        callback(func(*args, **kwds))

    assert get_async(apply_async, 2, seed_graph(), "w") == 4
    assert len(calls) == 2


def test_get_async_over_a_thread_pool():
    with ThreadPool(2) as pool:
        assert get_async(pool.apply_async, 2, seed_graph(), "w") == 4


def test_result_is_a_key_or_nested_lists_of_keys():
    # "`result`: a key or nested lists of keys"
    assert get_sync(seed_graph(), "w") == 4
    assert get_sync(seed_graph(), ["w"]) == (4,)
    assert get_sync(seed_graph(), [["w", "x"], ["z", []], "x"]) == ((4, 1), (2, ()), 1)
    assert get_sync(seed_graph(), []) == ()
    assert get_sync({("x", 0): (inc, 1)}, [("x", 0)]) == (2,)


def test_cache_may_be_shared_between_calls():
    # "`cache`: dict-like temporary storage, may be shared between calls"
    runs = []
    dsk = {"x": (lambda: runs.append("x") or 5,), "y": (inc, "x"), "z": (inc, "x")}
    cache = {}
    assert get_sync(dsk, ["x", "y"], cache=cache) == (5, 6)
    assert cache == {"x": 5, "y": 6}
    assert get_sync(dsk, ["x", "z"], cache=cache) == (5, 6)
    assert runs == ["x"]


def test_rerun_exceptions_locally():
    # "a failing task is run again in the caller's process, for a debugger"
    runs = []

    def task():
        runs.append(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        get_sync({"x": (task,)}, "x", rerun_exceptions_locally=True)
    assert len(runs) == 2


def test_no_accessible_jobs():
    # "A graph with waiting tasks and nothing ready raises `ValueError` ("no accessible jobs"): say
    # which keys form the cycle"
    dsk = {"a": (inc, "b"), "b": (inc, "c"), "c": (inc, "b")}
    with pytest.raises(ValueError, match="no accessible jobs") as caught:
        get_sync(dsk, "a")
    assert "'b'" in str(caught.value)
    assert "'c'" in str(caught.value)
    assert "'a'" not in str(caught.value)


def test_callbacks_as_dask_has_them():
    calls = []

    def note(name):
        return lambda *args: calls.append((name, args))

    names = "start start_state pretask posttask finish".split()
    callback = tuple(note(name) for name in names)
    dsk = {"x": 1, "y": (inc, "x")}
    assert get_sync(dsk, "y", callbacks=callback, get_id=lambda: "me") == 2
    assert [name for name, _ in calls] == names
    state = calls[1][1][1]
    assert calls[0][1] == (dsk,)
    assert calls[1][1] == (dsk, state)
    assert calls[2][1] == ("y", dsk, state)
    assert calls[3][1] == ("y", 2, dsk, state, "me")
    assert calls[4][1] == (dsk, state, False)


def test_finish_is_called_after_an_error():
    # "`finish` is called for every started callback, also after an error"
    finished = []
    callbacks = [Callback(finish=lambda dsk, state, failed: finished.append(failed)) for _ in range(2)]
    with pytest.raises(ZeroDivisionError):
        get_sync({"x": (fail,)}, "x", callbacks=callbacks)
    assert finished == [True, True]


def test_unknown_arguments_are_ignored():
    assert get_sync(seed_graph(), "w", chunksize=3, pool=None, colour="red") == 4


# | get_sync(dsk, keys, **kwargs), apply_sync |


def test_get_sync_runs_one_task_at_a_time_here_whatever_num_workers():
    # "the same, one task at a time in this process; ignores `num_workers`"
    running = []
    callback = Callback(pretask=lambda key, dsk, state: running.append(len(state["running"])))
    dsk = {i: (inc, i + 0.5) for i in range(10)}
    with ThreadPool(1):
        results = get_sync(dsk, list(dsk), num_workers=8, callbacks=callback)
    assert results == tuple(i + 1.5 for i in range(10))
    assert running == [1] * 10


def test_apply_sync():
    got = []
    apply_sync(add, args=(1, 2), callback=got.append)
    apply_sync(dict, kwds={"a": 1}, callback=got.append)
    apply_sync(got.append, (5,))
    assert got == [3, {"a": 1}, 5]


# | default_get_id, default_pack_exception, identity, queue_get, reraise |


def test_small_parts():
    assert default_get_id() is None
    assert identity(got := object()) is got
    with pytest.raises(ZeroDivisionError):
        default_pack_exception(ZeroDivisionError(), repr)


def test_reraise_keeps_the_traceback():
    try:
        fail()
    except ZeroDivisionError as error:
        original, traceback = error, error.__traceback__
    original.__traceback__ = None
    with pytest.raises(ZeroDivisionError) as caught:
        reraise(original, traceback)
    assert caught.value is original
    assert [entry.name for entry in caught.traceback][-1] == "fail"


def test_queue_get():
    answers = queue.SimpleQueue()
    answers.put(3)
    assert queue_get(answers) == 3


def test_waiting_can_be_interrupted_on_every_platform(monkeypatch):
    # "waiting on the queue can be interrupted by Ctrl-C on every platform": on Windows, only a wait
    # that ends can be
    class Slow(queue.Queue):
        timeouts: ClassVar = []

        def get(self, block=True, timeout=None):
            self.timeouts.append(timeout)
            if len(self.timeouts) < 3:
                raise queue.Empty
            return super().get(block=False)

    monkeypatch.setattr(sys, "platform", "win32")
    answers = Slow()
    answers.put("x")
    assert queue_get(answers) == "x"
    assert len(Slow.timeouts) == 3
    assert None not in Slow.timeouts


# | flatten, reverse_dict, get_dependencies, has_tasks, istask, ishashable, toposort, isdag |


def test_graph_helpers():
    # "the graph helpers that the loop needs, for tuple graphs"
    dsk = seed_graph()
    assert list(graphmill.local.flatten([["a", [("b", 0)]], "c"])) == ["a", ("b", 0), "c"]
    assert graphmill.local.reverse_dict({"a": ["b"]}) == {"a": set(), "b": {"a"}}
    assert graphmill.local.get_dependencies(dsk, "w") == {"z", "y"}
    assert graphmill.local.has_tasks(dsk, ["x"])
    assert not graphmill.local.has_tasks(dsk, ["nothing"])
    assert graphmill.local.istask(dsk["z"])
    assert not graphmill.local.istask(("z", 1))
    assert graphmill.local.ishashable(("z", 1))
    assert not graphmill.local.ishashable(["z"])
    ranked = graphmill.local.toposort(dsk)
    assert sorted(ranked) == sorted(dsk)
    assert ranked.index("x") < ranked.index("z") < ranked.index("w")
    assert graphmill.local.isdag(dsk, ["w"])
    assert not graphmill.local.isdag({"a": (inc, "b"), "b": (inc, "a")}, "a")


# | configuration | `cache`, `rerun_exceptions_locally`, `num_workers`, ...


def test_settings_may_come_from_configuration():
    cache = {"z": 10}
    with config.set(cache=cache):
        assert get_sync(seed_graph(), "w") == 12
        assert start_state_from_dask({})["cache"] is cache
    assert cache["w"] == 12
    assert get_sync(seed_graph(), "w") == 4


# | debugging |


def test_each_release_is_logged(caplog):
    # "with debugging on, each release is logged with the key, who released it and the bytes now
    # held"
    held = sys.getsizeof
    with caplog.at_level(logging.DEBUG, "graphmill.local"):
        assert get_sync(seed_graph(), "w") == 4
    first, second = sorted(("z", "y"), key=order(seed_graph()).__getitem__)
    assert caplog.messages == [
        f"released 'x', by the end of 'z'; {held(2) + held(2)} bytes held",
        f"released {first!r}, by the end of 'w'; {held(2) + held(4)} bytes held",
        f"released {second!r}, by the end of 'w'; {held(4)} bytes held",
    ]


def test_nothing_is_logged_without_debugging(caplog):
    with caplog.at_level(logging.INFO, "graphmill.local"):
        get_sync(seed_graph(), "w")
    assert caplog.messages == []


# | callbacks | `local_callbacks`, `unpack_callbacks`, a `Callback` base class


def test_callbacks():
    # "context managers; global registration; works with `dask.diagnostics` objects as they are"
    # (these: test_callbacks.py)
    seen = []
    callback = Callback(pretask=lambda key, dsk, state: seen.append(key))
    with callback, local_callbacks() as listeners:
        assert unpack_callbacks(listeners) == [[], [], [callback._pretask], [], []]
    with local_callbacks() as listeners:
        assert listeners == ()
    callback.register()
    try:
        get_sync(seed_graph(), "z")
    finally:
        callback.unregister()
    get_sync(seed_graph(), "w")
    assert seen == ["z"]
