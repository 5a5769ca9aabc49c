"""Quick tasks go to workers several at a time; each of them is on its own all the same."""

import functools
import os
import signal
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from dask._task_spec import DataNode, Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from graphmill.engine.batches import in_batches
from graphmill.errors import WorkerDied

BIG = 200_000


@given(
    st.lists(st.floats(0, 0.001), max_size=600),
    st.integers(1, 8),
)
def test_batches_are_all_tasks_in_order_and_none_is_long(seconds, workers):
    tasks = list(range(len(seconds)))
    batches = list(in_batches(tasks, seconds, workers))
    assert [task for batch in batches for task in batch] == tasks
    assert all(0 < len(batch) <= 256 for batch in batches)
    assert len(batches) >= min(workers, len(tasks))
    if len(set(seconds)) == 1 and seconds[0] > 1e-6:
        assert all(seconds[0] * len(batch) <= 0.002 + seconds[0] for batch in batches)


@pytest.fixture
def quick(engine):
    """Runs tasks of a kind that is known to be quick, so that they go in batches; gives their results."""
    known = {("quick", i): (_nothing, i) for i in range(200)}
    for _ in range(2):
        engine.get(known, list(known))
    assert engine.estimates.seconds(("quick", 0)) < 0.001

    def run(tasks):
        dsk = {("quick", i): task for i, task in enumerate(tasks)}
        return engine.get(dsk, list(dsk))

    return run


def test_the_task_that_raises_is_named(quick):
    tasks = [(_nothing, i) for i in range(40)]
    tasks[17] = (_divide, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        quick(tasks)
    assert "raised by the task ('quick', 17)" in caught.value.__notes__


def test_the_task_that_kills_its_worker_is_named(quick, tmp_path):
    tasks = [(_touch, str(tmp_path / str(i))) for i in range(20)]
    tasks[11] = (_kill,)
    with pytest.raises(WorkerDied, match=r"\('quick', 11\)"):
        quick(tasks)


def test_tasks_survive_the_death_of_a_worker_that_another_has_killed_once(quick, tmp_path):
    tasks = [(_nothing, i) for i in range(20)]
    tasks[3] = (_kill_once, str(tmp_path / "killed"))
    assert quick(tasks) == (0, 1, 2, "survived", *range(4, 20))


def test_a_task_may_change_what_its_node_holds(quick):
    numbers, array = [1, 2], np.ones(10)
    assert quick([(_append, _Held(numbers)) for _ in range(20)]) == (3,) * 20
    assert quick([(_double, array) for _ in range(20)]) == (20.0,) * 20
    assert (numbers, array.sum()) == ([1, 2], 10)


def test_a_task_of_dask_may_change_what_its_node_holds(quick):
    numbers = [1, 2]
    nodes = [Task(("quick", i), _extend, numbers, DataNode(None, numbers)) for i in range(20)]
    assert quick(nodes) == ([1, 2, 0, 0],) * 20
    assert numbers == [1, 2]


def test_a_traceback_leads_from_the_call_to_the_function(quick):
    nodes = [_inverse(("quick", i), 30 - i) for i in range(40)]
    with pytest.raises(ZeroDivisionError) as caught:
        quick(nodes)
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "_divide"
    # The first ones, of which it is not known that there are others, go as Dask's nodes.
    assert not {"follow", "_try_task", "_call", "_execute_subgraph"} & set(names)


def test_composed_functions_are_sent_once_but_not_what_they_could_change(quick):
    numbers = [1, 2]
    assert quick([(functools.partial(_append, _Held(numbers)),) for _ in range(20)]) == (3,) * 20
    changing = functools.partial(_append, _Held(numbers))
    assert quick([(changing,)] * 20) == (3,) * 20
    constant = functools.partial(_sum_of, 1, c=(2, None))
    assert quick([(constant, i) for i in range(20)]) == tuple(range(3, 23))


def test_large_results_and_inputs(quick):
    arrays = quick([(np.full, BIG, i) for i in range(10)])
    assert [array[0] for array in arrays] == list(range(10))
    assert quick([(np.sum, array) for array in arrays]) == tuple(BIG * i for i in range(10))


def test_a_task_that_cannot_be_sent_runs_here(quick):
    here = _Stays()
    tasks = [(_nothing, i) for i in range(20)]
    tasks[5] = (_process_of, here)
    assert quick(tasks)[5] == os.getpid()


def test_warnings_of_one_task(quick):
    tasks = [(_nothing, i) for i in range(20)]
    tasks[7] = (_warn,)
    with pytest.warns(UserWarning, match="seven"):
        assert quick(tasks)[7] == 7


def test_a_task_that_raises_what_stops_others(quick):
    tasks = [(_nothing, i) for i in range(20)]
    tasks[4] = (_stop,)
    with pytest.raises(KeyboardInterrupt):
        quick(tasks)
    assert quick([(_nothing, i) for i in range(20)]) == tuple(range(20))


class _Held:
    def __init__(self, value):
        self.value = value


class _Stays:
    def __reduce__(self):
        raise TypeError("it stays")


def _nothing(x):
    return x


def _extend(numbers, same):
    numbers.append(0)
    same.append(0)
    return numbers


def _inverse(key, number):
    return Task.fuse(Task("first", _nothing, number), Task("then", _divide, TaskRef("first")), key=key)


def _divide(x):
    return 1 / x


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _kill_once(path):
    if not Path(path).exists():
        _touch(path)
        _kill()
    return "survived"


def _touch(path):
    Path(path).touch()
    return path


def _append(held):
    held.value.append(0)
    return len(held.value)


def _sum_of(a, b, c):
    return a + b + c[0]


def _double(array):
    array *= 2
    return float(array.sum())


def _process_of(_):
    return os.getpid()


def _warn():
    warnings.warn("seven", UserWarning, stacklevel=1)
    return 7


def _stop():
    raise KeyboardInterrupt
