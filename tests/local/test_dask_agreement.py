"""The same graphs give the same values as with Dask's own scheduler."""

import multiprocessing
from functools import partial
from multiprocessing.pool import ThreadPool

import cloudpickle
import dask.array as da
import dask.local
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from graphmill.graph import get_dependencies
from graphmill.local import get_async, get_sync
from tests.local.tasks import combine

MANY = settings(max_examples=120, deadline=None)
SOME = settings(max_examples=40, deadline=None)
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- graphs of tuples

#: None of these is a key.
LITERALS = st.one_of(
    st.integers(100, 105),
    st.sampled_from(["text", "", "k", 2.5, None, True, b"bytes", ("t", 99), (), slice(1, 2)]),
)


def key_of(i):
    """Give each position in a graph a key of one of the types that keys have."""
    return [f"k{i}", ("t", i), i + 10, ("t", f"u{i}", i)][i % 4]


def arguments(keys):
    """Anything that may stand in a task: literals, keys, and lists, tuples and tasks of them.

    No dictionaries: Dask's scheduler does not look for keys in them, ours does (test_model.py).
    """
    leaves = LITERALS | st.sampled_from(keys) if keys else LITERALS
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=2).map(lambda items: ("no key", *items)),
            st.lists(inner, max_size=3).map(lambda args: (combine, *args)),
        ),
        max_leaves=6,
    )


@st.composite
def tuple_graphs(draw):
    """Draw a graph, and what is asked of it."""
    dsk = {}
    for i in range(draw(st.integers(1, 8))):
        inside = arguments(list(dsk))
        dsk[key_of(i)] = draw(
            st.one_of(
                st.lists(inside, max_size=3).map(lambda args: (combine, *args)),
                st.lists(inside, max_size=3),
                st.integers(100, 105),
                st.sampled_from(list(dsk)) if dsk else st.just("data"),
            )
        )
    # keys of a graph come in any order
    dsk = dict(draw(st.permutations(list(dsk.items()))))
    asked = st.sampled_from(list(dsk))
    return dsk, draw(asked | st.lists(asked | st.lists(asked, max_size=2), max_size=3))


def same(ours, theirs):
    assert ours == theirs
    assert repr(ours) == repr(theirs)  # 1 is no True, and a list is no tuple


@MANY
@given(tuple_graphs())
def test_tuple_graphs(case):
    dsk, asked = case
    before = repr(dsk)
    same(get_sync(dsk, asked), dask.local.get_sync(dsk, asked))
    assert repr(dsk) == before
    event(f"{sum(bool(get_dependencies(dsk, key)) for key in dsk)} tasks with dependencies")


@SOME
@given(tuple_graphs(), st.integers(1, 4))
def test_tuple_graphs_in_threads(threads, case, num_workers):
    dsk, asked = case
    ours = get_async(threads.apply_async, num_workers, dsk, asked)
    same(ours, dask.local.get_sync(dsk, asked))


@FEW
@given(tuple_graphs())
def test_tuple_graphs_in_processes(processes, case):
    dsk, asked = case
    ours = get_async(processes.apply_async, 2, dsk, asked)
    same(ours, dask.local.get_sync(dsk, asked))


@SOME
@given(tuple_graphs())
def test_what_dask_makes_of_tuple_graphs(case):
    from dask._task_spec import convert_legacy_graph

    dsk, asked = case
    same(get_sync(convert_legacy_graph(dsk), asked), dask.local.get_sync(dsk, asked))


@SOME
@given(tuple_graphs())
def test_a_shared_cache_changes_nothing(case):
    dsk, asked = case
    cache = {}
    theirs = dask.local.get_sync(dsk, asked)
    same(get_sync(dsk, asked, cache=cache), theirs)
    same(get_sync(dsk, asked, cache=cache), theirs)


@pytest.fixture(scope="module")
def threads():
    with ThreadPool(4) as pool:
        yield pool
        pool.close()
        pool.join()


@pytest.fixture(scope="module")
def processes():
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        yield pool
        pool.close()
        pool.join()


# ---- arrays


def source(shape, chunks):
    data = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return da.from_array(data, chunks=chunks)


def double(block):
    return block * 2


UNARY = {
    "double": double,
    "transpose": lambda x: x.T,
    "map_blocks": lambda x: x.map_blocks(double),
    "slice": lambda x: x[:, 1:] if x.ndim == 2 and x.shape[1] > 1 else x[:3],
    "reverse": lambda x: x[::-1],
    "rechunk": lambda x: x.rechunk(3),
    "cumsum": lambda x: x.cumsum(axis=0),
    "add a sum": lambda x: x + x.sum(axis=0),
    "flatten": lambda x: x.ravel().rechunk(5),
    "where": lambda x: da.where(x % 2 == 0, x, -x),
    "overlap": lambda x: x.map_overlap(double, depth=1, boundary=0),
}
BINARY = {
    "add": lambda x, y: x + y[: x.shape[0]] if x.shape == y.shape else x + y.sum(),
    "stack": lambda x, y: da.concatenate([x, y]) if x.shape[1:] == y.shape[1:] else x - y.max(),
    "dot": lambda x, y: x @ y if x.ndim == y.ndim == 2 and x.shape[1] == y.shape[0] else x,
}


@st.composite
def arrays(draw):
    n = draw(st.integers(2, 6))
    shapes = st.sampled_from([(n,), (n, n), (n, 3)])
    made = [source(draw(shapes), chunks=draw(st.integers(1, 4))) for _ in range(2)]
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from([*UNARY, *BINARY]))
        if name in UNARY:
            made.append(UNARY[name](draw(st.sampled_from(made))))
        else:
            made.append(BINARY[name](draw(st.sampled_from(made)), draw(st.sampled_from(made))))
    return made[-1]


def compare_arrays(x, get, optimize):
    ours = x.compute(scheduler=get, optimize_graph=optimize)
    theirs = x.compute(scheduler=dask.local.get_sync, optimize_graph=optimize)
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs)


@SOME
@given(arrays(), st.booleans())
def test_arrays(x, optimize):
    compare_arrays(x, get_sync, optimize)


@settings(SOME, max_examples=20)
@given(arrays(), st.booleans())
def test_arrays_in_threads(threads, x, optimize):
    compare_arrays(x, partial(get_async, threads.apply_async, 4), optimize)


@settings(FEW, max_examples=8)
@given(arrays())
def test_arrays_in_processes(processes, x):
    get = partial(get_async, processes.apply_async, 2, dumps=cloudpickle.dumps, loads=cloudpickle.loads)
    compare_arrays(x, get, optimize=True)


def test_several_arrays_at_once():
    x = source((6, 6), 2)
    ours = dask.compute(x + 1, [x.sum(), {"t": x.T}], scheduler=get_sync)
    theirs = dask.compute(x + 1, [x.sum(), {"t": x.T}], scheduler=dask.local.get_sync)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1][0] == theirs[1][0]
    np.testing.assert_array_equal(ours[1][1]["t"], theirs[1][1]["t"])


def test_delayed():
    @dask.delayed
    def inc(x):
        return x + 1

    total = dask.delayed(sum)([inc(i) for i in range(5)])
    assert total.compute(scheduler=get_sync) == 15
    nested = dask.delayed({"a": [inc(1), (inc(2), 3)]})
    assert nested.compute(scheduler=get_sync) == {"a": [2, (3, 3)]}


def test_bag():
    import dask.bag

    bag = dask.bag.from_sequence(range(10), npartitions=3)
    pairs = bag.map(double).filter(bool).groupby(lambda x: x % 3, shuffle="tasks")
    ours = {key: sorted(values) for key, values in pairs.compute(scheduler=get_sync)}
    assert ours == {0: [6, 12, 18], 2: [2, 8, 14], 1: [4, 10, 16]}


def test_dataframe():
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"a": [1, 2, 1, 3], "b": [1.0, 2.0, 3.0, 4.0]})
    ours = dd.from_pandas(frame, npartitions=2).groupby("a").b.sum().compute(scheduler=get_sync)
    assert ours.sort_index().tolist() == [4.0, 2.0, 4.0]
