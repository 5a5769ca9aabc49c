"""The general loop over pools of threads and of processes, and what it does when things go wrong."""

import logging
import multiprocessing
import re
import sys
import threading
from multiprocessing.pool import Pool, ThreadPool

import cloudpickle
import dask
import pytest

import graphmill.local
from graphmill import config
from graphmill.errors import (
    ConfigError,
    CycleError,
    GraphError,
    MissingDependencyError,
    MissingKeyError,
    WorkerError,
)
from graphmill.local import Callback, get_async, get_sync
from tests.local import tasks


@pytest.fixture(scope="module")
def processes():
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        yield pool
        pool.close()
        pool.join()


@pytest.fixture(scope="module")
def threads():
    with ThreadPool(4) as pool:
        yield pool
        pool.close()
        pool.join()


@pytest.fixture(params=["threads", "processes"])
def pool(request):
    return request.getfixturevalue(request.param)


def chain_and_fan():
    return {
        "x": 1,
        "y": (tasks.inc, "x"),
        **{("fan", i): (tasks.add, "y", i) for i in range(10)},
        "sum": (tasks.total, [("fan", i) for i in range(10)]),
    }


def independent(n, function=tasks.inc):
    return {f"task {i}": (function, i) for i in range(n)}


# ---- results


def test_over_a_pool(pool):
    assert get_async(pool.apply_async, 2, chain_and_fan(), ["sum", "y"]) == (65, 2)


def test_tasks_run_in_the_pool(processes):
    dsk = independent(6, tasks.process_id)
    here = tasks.process_id()
    ids = get_async(processes.apply_async, 2, dsk, list(dsk))
    assert here not in ids
    assert set(ids) <= {process.pid for process in processes._pool}


def test_lambdas_go_through_dumps_and_loads(processes):
    dsk = {"x": (lambda: 3,), "y": (lambda x: x * 2, "x")}
    answer = get_async(processes.apply_async, 2, dsk, "y", dumps=cloudpickle.dumps, loads=cloudpickle.loads)
    assert answer == 6


def test_without_dumps_lambdas_do_not_go(processes):
    dsk = {"x": 1, "the lambda": (lambda x: x, "x")}
    with pytest.raises(WorkerError, match="'the lambda'"):
        get_async(processes.apply_async, 2, dsk, "the lambda")


def test_posttask_is_told_where_a_task_ran(processes):
    seen = {}
    callback = Callback(posttask=lambda key, value, dsk, state, who: seen.update({key: who}))
    dsk = independent(4, tasks.process_id)
    ids = get_async(processes.apply_async, 2, dsk, list(dsk), callbacks=callback, get_id=tasks.process_id)
    assert seen == dict(zip(dsk, ids, strict=True))


# ---- how many at once


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_at_most_num_workers_at_once(threads, num_workers):
    # Each task waits until as many run as may; were one more started, it would be counted.
    lock = threading.Lock()
    full = threading.Barrier(num_workers)
    running, most = 0, 0

    def task(i):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait(timeout=60)
        with lock:
            running -= 1
        return i

    told = []
    callback = Callback(pretask=lambda key, dsk, state: told.append(len(state["running"])))
    dsk = independent(6, task)
    get_async(threads.apply_async, num_workers, dsk, list(dsk), callbacks=callback)
    assert most <= num_workers
    assert max(told) == num_workers


def most_at_once(num_workers, n=7):
    """Run `n` tasks on a pool that answers only when the loop waits: how many it held at most."""
    calls, held = [], []

    def apply_async(func, args=(), kwds=None, callback=None):
        calls.append((func, args, callback))
        held.append(len(calls))

    def wait(answers):
        while calls:
            func, args, callback = calls.pop(0)
            callback(func(*args))
        return answers.get()

    dsk = independent(n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphmill.local, "queue_get", wait)
        assert get_async(apply_async, num_workers, dsk, list(dsk)) == tuple(range(1, n + 1))
    return max(held)


@pytest.mark.parametrize("num_workers", [1, 3, 7, 100])
def test_as_many_at_once_as_may(num_workers):
    assert most_at_once(num_workers) == min(num_workers, 7)


def test_num_workers_from_config():
    with config.set(num_workers=3):
        assert most_at_once(None) == 3
        assert most_at_once(2) == 2
    with dask.config.set(num_workers=4):
        assert most_at_once(None) == 4
    with dask.config.set({"num_workers": 4, "graphmill.num_workers": 5}):
        assert most_at_once(None) == 5


def test_num_workers_are_as_many_as_there_are_cpus_for_this_process(monkeypatch):
    monkeypatch.setattr("graphmill.local.available_cpus", lambda: 3)
    assert most_at_once(None) == 3


def test_num_workers_from_the_environment(monkeypatch):
    monkeypatch.setenv("GRAPHMILL_NUM_WORKERS", "5")
    assert most_at_once(None) == 5


@pytest.mark.parametrize("num_workers", [0, -1])
def test_num_workers_must_be_positive(num_workers):
    with pytest.raises(ValueError, match="num_workers must be at least 1"):
        get_async(None, num_workers, {"x": 1}, "x")
    with pytest.raises(ConfigError, match="'num_workers' must be a whole number of at least 1"):
        config.set(num_workers=num_workers)


# ---- tasks that fail


@pytest.mark.parametrize("pack", [None, tasks.pack_exception])
def test_a_failing_task(pool, pack):
    dsk = {**chain_and_fan(), "bad": (tasks.fail, "y"), "after": (tasks.inc, "bad")}
    more = {} if pack is None else {"pack_exception": pack}
    with pytest.raises(ZeroDivisionError, match="the task's own words") as caught:
        get_async(pool.apply_async, 2, dsk, ["after", "sum"], **more)
    assert "raised by the task 'bad'" in caught.value.__notes__
    # the pool is as good as before
    assert get_async(pool.apply_async, 2, chain_and_fan(), "sum") == 65


def test_a_failing_task_here():
    with pytest.raises(ZeroDivisionError) as caught:
        get_sync({"x": 1, ("bad", 0): (tasks.fail, "x")}, ("bad", 0))
    assert caught.value.__notes__ == ["raised by the task ('bad', 0)"]
    assert caught.traceback[-1].name == "fail"


def test_the_traceback_of_another_process_is_told(processes):
    with pytest.raises(ZeroDivisionError) as caught:
        get_async(processes.apply_async, 2, {"bad": (tasks.fail,)}, "bad")
    assert any("in fail\n" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("function", [tasks.fail_stubbornly, tasks.fail_with_lambda])
def test_exceptions_that_cannot_be_sent(processes, function):
    with pytest.raises(WorkerError, match=function.__name__) as caught:
        get_async(processes.apply_async, 2, {"bad": (function,)}, "bad")
    assert "raised by the task 'bad'" in caught.value.__notes__


@pytest.mark.parametrize("function", [tasks.fail_stubbornly, tasks.fail_with_lambda])
def test_exceptions_that_could_not_be_sent_need_not_be_in_threads(threads, function):
    with pytest.raises((tasks.Stubborn, ValueError)) as caught:
        get_async(threads.apply_async, 2, {"bad": (function,)}, "bad")
    assert caught.value.__notes__ == ["raised by the task 'bad'"]


@pytest.mark.parametrize("function", [tasks.make_lambda, tasks.make_refusing])
def test_results_that_cannot_be_sent(processes, function):
    with pytest.raises(WorkerError, match="result of 'odd'") as caught:
        get_async(processes.apply_async, 2, {"odd": (function,)}, "odd")
    assert caught.value.__cause__ is not None


def test_inputs_that_cannot_be_unpacked_there(processes):
    # `Refuses` can be made and pickled here, and not unpickled in the worker process
    dsk = {"odd": tasks.Refuses(), "user": (tasks.process_id, "odd")}
    with pytest.raises(RuntimeError, match="refuses to be unpickled") as caught:
        get_async(processes.apply_async, 2, dsk, "user")
    assert "raised by the task 'user'" in caught.value.__notes__
    assert get_async(processes.apply_async, 2, chain_and_fan(), "sum") == 65


def test_answers_that_cannot_be_loaded(threads):
    def loads(packed):
        if packed and isinstance(packed[0], int):
            raise RuntimeError("cannot load")
        return packed

    with pytest.raises(RuntimeError, match="cannot load") as caught:
        get_async(threads.apply_async, 2, {"odd": (tasks.inc, 1)}, "odd", loads=loads)
    assert any("'odd'" in note for note in caught.value.__notes__)


def test_a_pack_exception_that_fails(pool):
    with pytest.raises(TypeError) as caught:
        get_async(pool.apply_async, 2, {"bad": (tasks.fail,)}, "bad", pack_exception=tasks.inc)
    assert "raised by the task 'bad'" in caught.value.__notes__


def test_a_pool_that_tells_of_no_errors():
    def apply_async(func, args=(), kwds=None, callback=None):
        callback(func(*args))

    with pytest.raises(ZeroDivisionError) as caught:
        get_async(apply_async, 2, {"bad": (tasks.fail,)}, "bad")
    assert caught.value.__notes__ == ["raised by the task 'bad'"]


def test_a_pool_that_cannot_take_tasks():
    pool = ThreadPool(1)
    pool.close()
    pool.join()
    finished = []
    callback = Callback(finish=lambda dsk, state, failed: finished.append(failed))
    with pytest.raises(ValueError, match="Pool not running"):
        get_async(pool.apply_async, 1, {"x": (tasks.inc, 1)}, "x", callbacks=callback)
    assert finished == [True]


def test_raise_exception_is_called(threads):
    def raise_exception(error, traceback):
        assert traceback is not None
        raise LookupError(str(error))

    with pytest.raises(LookupError, match="own words"):
        get_async(threads.apply_async, 1, {"x": (tasks.fail,)}, "x", raise_exception=raise_exception)


def test_raise_exception_that_raises_nothing(threads):
    with pytest.raises(ZeroDivisionError):
        get_async(threads.apply_async, 1, {"x": (tasks.fail,)}, "x", raise_exception=lambda error, tb: 0)


# ---- running again, here


@pytest.mark.parametrize("source", ["argument", "config", "dask", "environment"])
def test_rerun_exceptions_locally(threads, monkeypatch, source):
    places = []

    def task():
        places.append(threading.get_ident())
        raise KeyError(len(places))

    more = {"rerun_exceptions_locally": True} if source == "argument" else {}
    if source == "environment":
        monkeypatch.setenv("GRAPHMILL_RERUN_EXCEPTIONS_LOCALLY", "true")
    with (
        config.set(rerun_exceptions_locally=True if source == "config" else None),
        dask.config.set({"rerun_exceptions_locally": source == "dask"}),
        pytest.raises(KeyError) as caught,
    ):
        get_async(threads.apply_async, 1, {"x": (task,)}, "x", **more)
    assert caught.value.args == (2,)
    assert caught.value.__notes__ == ["raised by the task 'x', run again in this process"]
    assert places[0] != places[1] == threading.get_ident()


def test_nothing_is_run_again_unasked(threads):
    runs = []

    def task():
        runs.append(1)
        raise KeyError

    with pytest.raises(KeyError):
        get_async(threads.apply_async, 1, {"x": (task,)}, "x")
    assert runs == [1]


def test_a_task_that_fails_only_elsewhere(threads):
    here = threading.get_ident()
    runs = []

    def task(x):
        runs.append(x)
        if threading.get_ident() != here:
            raise KeyError("elsewhere")

    dsk = {"x": 5, "y": (task, "x")}
    with pytest.raises(KeyError, match="elsewhere") as caught:
        get_async(threads.apply_async, 1, dsk, "y", rerun_exceptions_locally=True)
    assert runs == [5, 5]
    assert "run again in this process, the task raised nothing" in caught.value.__notes__


# ---- graphs that cannot run


def test_a_cycle_names_its_keys():
    dsk = {"in": 1, "a": (tasks.add, "in", ("b", 1)), ("b", 1): (tasks.inc, "c")}
    dsk["c"] = (tasks.inc, "a")
    with pytest.raises(CycleError, match="no accessible jobs") as caught:
        get_sync(dsk, "a")
    assert isinstance(caught.value, ValueError)
    words = re.findall(r"'in'|'a'|\('b', 1\)|'c'", str(caught.value))
    assert set(words) == {"'a'", "('b', 1)", "'c'"}
    assert words[0] == words[-1]


def test_a_task_that_waits_for_itself():
    with pytest.raises(ValueError, match=r"no accessible jobs.*\n.*'a'\n.*'a'"):
        get_sync({"a": (tasks.inc, "a")}, "a")


def test_a_cycle_behind_tasks_that_could_run():
    ran = []
    dsk = {"fine": (ran.append, 1), "a": (tasks.add, "fine", "b"), "b": (tasks.inc, "a")}
    with pytest.raises(CycleError):
        get_sync(dsk, "a")
    assert ran == []


def test_a_cycle_that_is_not_needed():
    dsk = {"x": (tasks.inc, 1), "a": (tasks.inc, "b"), "b": (tasks.inc, "a")}
    assert get_sync(dsk, "x") == 2


def test_a_missing_dependency_names_both():
    from dask._task_spec import Task, TaskRef

    dsk = {"user": Task("user", tasks.inc, TaskRef("absent"))}
    with pytest.raises(MissingDependencyError) as caught:
        get_sync(dsk, "user")
    assert "'absent'" in str(caught.value)
    assert "'user'" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("asked", "like"), [("tempreature", "'temperature'"), (("t", 12), "('t', 1)"), ("a" * 9, None)]
)
def test_an_absent_key_suggests_what_looks_like_it(asked, like):
    dsk = {"temperature": 1, ("t", 1): 2, "q": 3}
    with pytest.raises(MissingKeyError) as caught:
        get_sync(dsk, [["q", asked]])
    assert isinstance(caught.value, KeyError)
    assert repr(asked) in str(caught.value)
    if like is None:
        assert "none of its 3 keys looks like it" in str(caught.value)
    else:
        assert like in str(caught.value)
        assert "'q'" not in str(caught.value)


@pytest.mark.parametrize("dsk", [3, None, [("x", 1)], "text"])
def test_what_is_no_graph(dsk):
    with pytest.raises(TypeError, match="A graph must be a mapping"):
        get_sync(dsk, "x")


# ---- the cache


def test_a_shared_cache_holds_results_only(pool):
    cache = {}
    assert get_async(pool.apply_async, 2, chain_and_fan(), ["sum", "y"], cache=cache) == (65, 2)
    assert cache == {"sum": 65, "y": 2}
    cache["y"] = 100
    assert get_async(pool.apply_async, 2, chain_and_fan(), ("fan", 3), cache=cache) == 103


def test_keys_that_only_the_cache_has():
    dsk = {"z": (tasks.add, "x", "elsewhere")}
    assert get_sync({**dsk, "x": 1}, ["z", "other"], cache={"elsewhere": 5, "other": 0}) == (6, 0)


def test_the_callers_graph_is_not_changed():
    dsk = chain_and_fan()
    before = dict(dsk)
    callback = Callback(start=lambda dsk: dsk.update(x=100))
    assert get_sync(dsk, "y", callbacks=callback) == 101
    assert dsk == before


@pytest.mark.parametrize("where", [config.set, dask.config.set])
def test_cache_from_config(where):
    cache = {"y": 100}
    with where(cache=cache):
        assert get_sync(chain_and_fan(), ("fan", 3)) == 103
    assert cache == {("fan", 3): 103}
    assert get_sync(chain_and_fan(), ("fan", 3)) == 5


def test_an_argument_goes_before_config():
    with config.set(cache={"y": 100}), dask.config.set(cache={"y": 200}):
        assert get_sync(chain_and_fan(), "y") == 100
        assert get_sync(chain_and_fan(), "y", cache={"y": 300}) == 300
        assert get_sync(chain_and_fan(), "y", cache={}) == 2


# ---- config


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="There is no setting 'nun_workers'"):
        config.get("nun_workers")
    with pytest.raises(ConfigError, match="There is no setting"), config.set(nun_workers=1):
        pass
    for value in ("many", 2.5, True):
        with pytest.raises(ConfigError, match="'num_workers' must be a whole number"):
            config.set(num_workers=value).__enter__()
    with pytest.raises(ConfigError, match="'cache' must be a mapping"):
        config.set(cache="/tmp/cache").__enter__()


def test_wrong_settings_name_where_they_come_from(monkeypatch):
    monkeypatch.setenv("GRAPHMILL_NUM_WORKERS", "many")
    with pytest.raises(ConfigError, match="the environment variable GRAPHMILL_NUM_WORKERS"):
        config.get("num_workers")
    monkeypatch.delenv("GRAPHMILL_NUM_WORKERS")
    with (
        dask.config.set(num_workers="many"),
        pytest.raises(ConfigError, match=r"dask\.config 'num_workers' gives 'many'"),
    ):
        config.get("num_workers")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("memory_limit", "4GB", "4GB"),
        ("memory_limit", "1.5 GiB", "1.5 GiB"),
        ("memory_limit", "60%", "60%"),
        ("memory_limit", "512M", "512M"),
        ("memory_limit", "4000000000", 4_000_000_000),
        ("memory_limit", "4e9", 4e9),
        ("memory_limit", "none", None),
        ("memory_limit", "", None),
        ("warm_limit", "0", 0),
        ("warm_limit", "64MB", "64MB"),
        ("spill_limit", "1TB", "1TB"),
        ("spill_folder", "/scratch/me", "/scratch/me"),
        ("spill_folder", "2024", "2024"),
        ("spill_folder", "None", "None"),
        ("spill_folder", "", None),
        ("num_workers", "", None),
    ],
)
def test_settings_of_memory_from_the_environment(monkeypatch, name, text, value):
    monkeypatch.setenv(f"GRAPHMILL_{name.upper()}", text)
    found = config.get(name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("memory_limit", [4]), ("warm_limit", 0.5), ("spill_limit", True), ("spill_folder", 7)],
)
def test_settings_of_memory_are_checked(name, value):
    with pytest.raises(ConfigError, match=f"'{name}' must be "):
        config.set(**{name: value}).__enter__()


def test_set_ends_with_its_block():
    with config.set(num_workers=1):
        with config.set(num_workers=2, rerun_exceptions_locally=True):
            assert config.get("num_workers") == 2
        assert config.get("num_workers") == 1
        assert config.get("rerun_exceptions_locally") is None
    assert config.get("num_workers", 9) == 9


# ---- debugging


def test_bytes_held_are_counted_for_any_value(caplog):
    import numpy as np

    dsk = {"x": (np.ones, 1000), "cls": (type, "x"), "end": (tasks.make_lambda, "cls", "x")}
    with caplog.at_level(logging.DEBUG, "graphmill.local"):
        get_sync(dsk, "end")
    assert [message.split(";")[0] for message in sorted(caplog.messages)] == [
        "released 'cls', by the end of 'end'",
        "released 'x', by the end of 'end'",
    ]
    held = [int(message.split()[-3]) for message in caplog.messages]
    # an array of 8000 bytes goes; its class has a property of the name `nbytes`, which is no number
    assert (held[0] >= 8000) == caplog.messages[0].startswith("released 'cls'")
    assert held[1] == sys.getsizeof(tasks.make_lambda())


def test_pools_of_the_tests_are_what_they_say(processes, threads):
    assert isinstance(processes, Pool)
    assert isinstance(threads, ThreadPool)


# ---- keys of all kinds


def test_none_is_a_key_like_others():
    dsk = {None: (tasks.inc, 1), "y": (tasks.inc, 2)}
    assert get_sync(dsk, [None, "y"]) == (2, 3)
    assert get_sync(dsk, None) == 2


@pytest.mark.parametrize("inner", [list, lambda cycle: [["x"], cycle]])
def test_lists_of_keys_that_contain_themselves(inner):
    cycle: list[object] = ["x"]
    cycle.append(inner([cycle]))
    with pytest.raises(GraphError, match="contains itself"):
        get_sync({"x": 1}, cycle)


def test_a_list_of_keys_may_come_twice():
    keys = ["x"]
    assert get_sync({"x": 1}, [keys, keys]) == ((1,), (1,))
