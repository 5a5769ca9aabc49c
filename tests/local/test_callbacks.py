"""Who is told of a run: our callbacks and Dask's, alone, nested, and in several threads at once."""

import io
import threading
from multiprocessing.pool import ThreadPool
from operator import add, mul

import dask
import dask.cache
import dask.callbacks
import dask.threaded
import pytest
from dask.diagnostics import CacheProfiler, Profiler, ProgressBar, ResourceProfiler

from graphmill.callbacks import local_callbacks, normalize_callback
from graphmill.local import Callback, get_async, get_sync

GETS = ["here", "threads"]


def graph():
    return {"x": 1, "y": (add, "x", 10), "z": (mul, "y", 2)}


def fail(*args):
    raise ZeroDivisionError


@pytest.fixture(params=GETS)
def get(request):
    """A scheduler: ours, in this thread and over a pool of threads."""
    if request.param == "here":
        yield get_sync
        return
    with ThreadPool(2) as pool:
        yield lambda dsk, keys, **kwargs: get_async(pool.apply_async, 2, dsk, keys, **kwargs)
        pool.close()
        pool.join()


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    ours, theirs = Callback.active, dask.callbacks.Callback.active
    assert ours == theirs == set()
    yield
    assert Callback.active is ours
    assert dask.callbacks.Callback.active is theirs
    assert ours == theirs == set()


@pytest.fixture(params=[Callback, dask.callbacks.Callback], ids=["ours", "dask's"])
def base(request):
    return request.param


def recorder(base, seen=None):
    """Make a callback that notes what it is told, with the first argument that tells keys apart."""
    seen = [] if seen is None else seen

    class Recorder(base):
        def _start(self, dsk):
            seen.append("start")

        def _start_state(self, dsk, state):
            seen.append("start_state")

        def _pretask(self, key, dsk, state):
            seen.append(("pretask", key))

        def _posttask(self, key, value, dsk, state, worker_id):
            seen.append(("posttask", key, value))

        def _finish(self, dsk, state, failed):
            seen.append(("finish", failed))

    callback = Recorder()
    callback.seen = seen
    return callback


STORY = [
    "start",
    "start_state",
    ("pretask", "y"),
    ("posttask", "y", 11),
    ("pretask", "z"),
    ("posttask", "z", 22),
    ("finish", False),
]


def story_of(*keys_and_values):
    """Tell what a callback is told of a run of the given tasks, one after the other."""
    told = ["start", "start_state"]
    for key, value in keys_and_values:
        told += [("pretask", key), ("posttask", key, value)]
    return [*told, ("finish", False)]


# ---- how to listen


def test_as_a_context_manager(get, base):
    with recorder(base) as callback:
        assert get(graph(), "z") == 22
    assert get(graph(), "z") == 22
    assert callback.seen == STORY


def test_registered(get, base):
    callback = recorder(base)
    callback.register()
    try:
        get(graph(), "z")
    finally:
        callback.unregister()
    get(graph(), "z")
    assert callback.seen == STORY


def test_given(get, base):
    callback = recorder(base)
    other = recorder(base)
    get(graph(), "z", callbacks=callback)
    get(graph(), "z", callbacks=callback._callback)
    get(graph(), "z", callbacks=[callback, other._callback])
    get(graph(), "z", callbacks=(other, callback))
    assert callback.seen == STORY * 4
    assert other.seen == STORY * 2


def test_those_given_replace_those_registered(get, base):
    with recorder(base) as callback:
        get(graph(), "z", callbacks=[])
        get(graph(), "z", callbacks=())
    assert callback.seen == []


def test_functions_and_subclasses():
    seen = []
    callback = Callback(
        start=lambda dsk: seen.append("start"),
        finish=lambda dsk, state, failed: seen.append(("finish", failed)),
    )
    get_sync(graph(), "z", callbacks=callback)
    assert seen == ["start", ("finish", False)]
    assert normalize_callback(callback)[1:4] == (None, None, None)


def test_what_is_no_callback():
    with pytest.raises(TypeError, match="got int"):
        get_sync(graph(), "z", callbacks=[3])
    with pytest.raises(TypeError, match="got function"):
        normalize_callback(lambda: None)
    with pytest.raises(TypeError, match="got a tuple of 2"):
        get_sync(graph(), "z", callbacks=[(None, None)])


def test_unregistering_what_was_not_registered():
    with pytest.raises(KeyError):
        Callback(start=print).unregister()


def test_start_may_change_the_graph(get, base):
    class Change(base):
        def _start(self, dsk):
            dsk["x"] = 100

    with Change():
        assert get(graph(), "z") == 220


def test_state_is_as_dask_has_it(get):
    seen = {}

    def start_state(dsk, state):
        seen.update(start={name: set(state[name]) for name in ("ready", "waiting", "cache")})

    def posttask(key, value, dsk, state, worker_id):
        seen[key] = {name: set(state[name]) for name in ("finished", "released")}

    get(graph(), "z", callbacks=(None, start_state, None, posttask, None))
    assert seen == {
        "start": {"ready": {"y"}, "waiting": {"z"}, "cache": {"x"}},
        "y": {"finished": {"y"}, "released": {"x"}},
        "z": {"finished": {"y", "z"}, "released": {"x", "y"}},
    }


# ---- Dask's own


def test_progress_bar(get):
    out = io.StringIO()
    with ProgressBar(out=out) as bar:
        get(graph(), "z")
    assert "100% Completed" in out.getvalue()
    assert bar._state["finished"] == {"y", "z"}


def test_progress_bar_after_an_error(get):
    out = io.StringIO()
    with ProgressBar(out=out), pytest.raises(ZeroDivisionError):
        get({**graph(), "z": (fail, "y")}, "z")
    assert "50% Completed" in out.getvalue()


def test_profiler(get):
    dsk = graph()
    with Profiler() as profiler:
        get(dsk, "z", get_id=lambda: 7)
    results = sorted(profiler.results)
    assert [(r.key, r.task, r.worker_id) for r in results] == [
        ("y", dsk["y"], 7),
        ("z", dsk["z"], 7),
    ]
    assert all(r.start_time <= r.end_time for r in results)
    assert results[0].end_time <= results[1].start_time
    assert profiler._dsk == dsk
    assert profiler.start_time <= results[0].start_time


def test_profiler_leaves_out_what_failed(get):
    with Profiler() as profiler, pytest.raises(ZeroDivisionError):
        get({**graph(), "z": (fail, "y")}, "z")
    assert [r.key for r in profiler.results] == ["y"]


def test_resource_profiler(get):
    with ResourceProfiler(dt=0.01) as profiler:
        get(graph(), "z")
    assert profiler.results
    assert all(len(r) == 3 and r.mem > 0 for r in profiler.results)
    assert not profiler._is_running()


def test_resource_profiler_registered(get):
    profiler = ResourceProfiler(dt=0.01)
    profiler.register()
    try:
        get(graph(), "z")
        assert profiler.results
    finally:
        profiler.unregister()
        profiler.close()


def test_cache_profiler(get):
    dsk = graph()
    with CacheProfiler(metric=lambda value: value, metric_name="value") as profiler:
        get(dsk, "z")
    results = {r.key: r for r in profiler.results}
    assert {key: (r.task, r.metric) for key, r in results.items()} == {
        "y": (dsk["y"], 11),
        "z": (dsk["z"], 22),
    }
    # `y` is let go when `z` has been made
    assert results["y"].cache_time < results["y"].free_time == results["z"].cache_time


def test_profiles_can_be_drawn(get, tmp_path):
    pytest.importorskip("bokeh")
    from dask.diagnostics import visualize

    with Profiler() as tasks, CacheProfiler() as cache:
        get(graph(), "z")
    visualize([tasks, cache], filename=str(tmp_path / "profile.html"), show=False, save=True)
    assert "bokeh" in (tmp_path / "profile.html").read_text()


def test_dask_cache(get):
    pytest.importorskip("cachey")
    runs = []

    def slow(x):
        runs.append(x)
        return x + 1

    dsk = {"x": 1, "y": (slow, "x"), "z": (slow, "y")}
    cache = dask.cache.Cache(1e6)
    with cache:
        assert get(dsk, "y") == 2
        assert get(dsk, "z") == 3
    assert runs == [1, 2]
    assert cache.cache.data == {"y": 2, "z": 3}
    assert cache.starttimes == cache.durations == {}
    assert dsk["y"] == (slow, "x")


def test_all_together(get):
    with (
        ProgressBar(out=io.StringIO()),
        Profiler() as profiler,
        CacheProfiler() as cache,
        ResourceProfiler(dt=0.01) as resources,
    ):
        assert get(graph(), "z") == 22
    assert [len(p.results) for p in (profiler, cache)] == [2, 2]
    assert resources.results


def test_dask_collections_with_dasks_callbacks():
    da = pytest.importorskip("dask.array")
    x = da.ones((6, 6), chunks=3)
    with Profiler() as profiler, recorder(Callback) as ours:
        assert (x + x.T).sum().compute(scheduler=get_sync) == 72
    assert len(profiler.results) == sum(entry[0] == "posttask" for entry in ours.seen) > 0


# ---- nested runs


def nested_ours(x):
    return get_sync({("inner", 1): (add, x, 1)}, ("inner", 1))


def nested_dasks(x):
    return dask.get({("inner", 1): (add, x, 1)}, ("inner", 1))


def nested_dasks_threads(x):
    return dask.threaded.get({("inner", 1): (add, x, 1)}, ("inner", 1))


@pytest.mark.parametrize("nested", [nested_ours, nested_dasks, nested_dasks_threads])
def test_only_the_outermost_run_calls_registered_callbacks(get, base, nested):
    with recorder(base) as callback:
        assert get({"x": 1, "y": (nested, "x")}, "y") == 2
        assert callback.seen == story_of(("y", 2))
        callback.seen.clear()
        get(graph(), "z")
    assert callback.seen == STORY


def test_ours_nested_in_dasks():
    with recorder(dask.callbacks.Callback) as callback:
        assert dask.get({"x": 1, "y": (nested_ours, "x")}, "y") == 2
    assert callback.seen == story_of(("y", 2))


@pytest.mark.parametrize("nested", [nested_ours, nested_dasks])
def test_a_nested_run_is_the_first_to_see_them_if_the_outer_was_given_others(get, nested):
    with recorder(dask.callbacks.Callback) as callback:
        get({"x": 1, "y": (nested, "x")}, "y", callbacks=[])
    assert callback.seen == story_of((("inner", 1), 2))


@pytest.mark.parametrize("nested", [nested_ours, nested_dasks])
def test_a_callback_of_the_task_itself(get, nested):
    inner = []

    def task(x):
        with recorder(dask.callbacks.Callback, inner):
            return nested(x)

    with recorder(dask.callbacks.Callback) as callback:
        assert get({"x": 1, "y": (task, "x")}, "y") == 2
    assert callback.seen == story_of(("y", 2))
    assert inner == story_of((("inner", 1), 2))


def test_a_nested_run_told_what_to_call(get, base):
    inner = recorder(base)

    def task(x):
        return get_sync(graph(), "z", callbacks=inner)

    with recorder(base) as callback:
        get({"x": 1, "y": (task, "x")}, "y")
    assert callback.seen == story_of(("y", 22))
    assert inner.seen == STORY


def test_a_run_in_a_callback(get, base):
    class Nosy(base):
        def _posttask(self, key, value, dsk, state, worker_id):
            get_sync(graph(), "z")
            dask.get(graph(), "z")

    with recorder(base) as callback, Nosy():
        get({"x": 1, "y": (add, "x", 1)}, "y")
    assert callback.seen == story_of(("y", 2))


# ---- after errors


def test_finish_is_told_of_a_failure(get, base):
    with recorder(base) as callback, pytest.raises(ZeroDivisionError):
        get({"x": 1, "y": (fail, "x")}, "y")
    assert callback.seen == ["start", "start_state", ("pretask", "y"), ("finish", True)]


def test_finish_after_an_error_in_a_later_start(get):
    told = []

    def listener(name, start=None):
        return (start, None, None, None, lambda dsk, state, failed: told.append((name, failed)))

    callbacks = [
        listener("first", lambda dsk: told.append("start")),
        listener("second"),
        listener("third", fail),
        listener("fourth", lambda dsk: told.append("never")),
    ]
    with pytest.raises(ZeroDivisionError):
        get(graph(), "z", callbacks=callbacks)
    assert told == ["start", ("first", True), ("second", True)]


@pytest.mark.parametrize("at", ["start_state", "pretask", "posttask"])
def test_finish_after_an_error_in_a_callback(get, base, at):
    told = []
    callbacks = [
        base(finish=lambda dsk, state, failed: told.append(failed)),
        base(**{at: fail}),
    ]
    with pytest.raises(ZeroDivisionError):
        get(graph(), "z", callbacks=callbacks)
    assert told == [True]


def test_finish_after_an_error_in_finish(get):
    told = []

    def note(dsk, state, failed):
        told.append(failed)

    callbacks = [(None,) * 4 + (function,) for function in (note, fail, note)]
    with pytest.raises(ZeroDivisionError):
        get(graph(), "z", callbacks=callbacks)
    assert told == [False, False]


@pytest.mark.parametrize("dsk", [{"z": (add, "z", 1)}, {"y": 1}], ids=["cycle", "missing key"])
def test_finish_after_a_graph_that_cannot_run(base, dsk):
    with recorder(base) as callback, pytest.raises(ValueError, match="key"):
        get_sync(dsk, "z")
    assert callback.seen == ["start", ("finish", True)]


# ---- several threads


def run_in_threads(*functions):
    """Run functions in threads of their own; raise what they raised."""
    errors = []

    def guarded(function):
        try:
            function()
        except BaseException as e:  # noqa: BLE001 - raised below
            errors.append(e)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]


class Step:
    """Says that something has happened, and lets others wait for it."""

    def __init__(self):
        self.event = threading.Event()

    def done(self, *_):
        self.event.set()

    def wait(self, *_):
        assert self.event.wait(60)


def interleave(first_get, second_get, order):
    """Run two runs with a callback each, in two threads; their steps as given.

    Each goes through: enter (its callback), begin (its run), end, leave.
    """
    steps = {name: Step() for name in order}
    before = dict(zip(order[1:], order, strict=False))

    def at(name):
        if name in before:
            steps[before[name]].wait()

    def run(who, get):
        at(f"{who} enter")
        seen = []
        callback = dask.callbacks.Callback(
            pretask=lambda key, dsk, state: seen.append(key) if who in key else None
        )
        with callback:
            steps[f"{who} enter"].done()

            def begin():
                at(f"{who} begin")
                steps[f"{who} begin"].done()
                at(f"{who} end")

            at(f"{who} begin")
            assert get({(who, 0): (begin,)}, (who, 0)) is None
            steps[f"{who} end"].done()
            at(f"{who} leave")
        steps[f"{who} leave"].done()
        assert seen == [(who, 0)]

    run_in_threads(lambda: run("a", first_get), lambda: run("b", second_get))


ORDERS = {
    "one after the other": "a enter,a begin,a end,a leave,b enter,b begin,b end,b leave",
    "one within the other": "a enter,a begin,b enter,b begin,b end,b leave,a end,a leave",
    "across": "a enter,a begin,b enter,b begin,a end,a leave,b end,b leave",
    "entered together": "a enter,b enter,a begin,b begin,a end,b end,b leave,a leave",
    "left early": "a enter,b enter,a begin,b begin,a end,a leave,b end,b leave",
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_runs_in_two_threads_lose_no_callback(order):
    interleave(get_sync, get_sync, order.split(","))


def test_a_run_of_dasks_that_ends_after_ours():
    # Dask puts back what it found: our curtain, which has been taken down meanwhile
    theirs_began, ours_ended = Step(), Step()

    def lasting():
        theirs_began.done()
        ours_ended.wait()

    def failing():
        theirs_began.wait()
        raise ZeroDivisionError

    dsk = {"lasts": (lambda: dask.get({"t": (lasting,)}, "t"),), "fails": (failing,)}
    with recorder(dask.callbacks.Callback) as callback:
        with ThreadPool(2) as pool:
            with pytest.raises(ZeroDivisionError):
                get_async(pool.apply_async, 2, dsk, list(dsk))
            ours_ended.done()
            pool.close()
            pool.join()
        callback.seen.clear()
        assert dask.get(graph(), "z") == 22
        assert callback.seen == STORY
        callback.seen.clear()
        assert get_sync(graph(), "z") == 22
        assert callback.seen == STORY


def test_what_is_registered_during_a_run_stays(get):
    callback = recorder(dask.callbacks.Callback)
    try:
        get({"x": (callback.register,)}, "x")
        assert callback.seen == []
        get(graph(), "z")
        assert callback.seen == STORY
    finally:
        callback.unregister()


def test_what_is_unregistered_during_a_run_is_gone(get):
    callback = recorder(dask.callbacks.Callback)
    callback.register()
    get({"x": (callback.unregister,)}, "x")
    assert callback.seen == story_of(("x", None))
    get(graph(), "z")
    assert callback.seen == story_of(("x", None))


def test_the_registry_is_a_set_in_a_run_too():
    registry = dask.callbacks.Callback
    one, two = [(function, None, None, None, None) for function in (len, repr)]

    def task():
        assert one not in registry.active  # told already
        registry.active.update([two])
        assert two in registry.active
        assert len(registry.active) == 1
        assert set(registry.active | {one}) == {one, two}
        registry.active.discard(two)
        with pytest.raises(KeyError):
            registry.active.remove(two)
        registry.active.add(two)
        registry.active.remove(two)
        return list(registry.active)

    with dask.callbacks.add_callbacks(one):
        assert get_sync({"x": (task,)}, "x") == []


def test_local_callbacks_by_hand():
    with recorder(Callback) as callback:
        with local_callbacks() as outer, local_callbacks() as inner:
            assert (outer, inner) == ((callback._callback,), ())
        with local_callbacks(callback) as given:
            assert given == (callback._callback,)
