"""Tasks that do all that is rude to arrays, in random graphs: answers are as if each had copies of its own.

They change inputs in place, hand on views of them, and keep them; the user keeps results, and writes to them.
"""

import copy
import random

import numpy as np
import pytest

SIZES = 10, 5_000, 50_000, 200_000
#: Inputs that tasks have kept in this process, and what they were; a worker has a list of its own.
_kept = []


def arrays_in(value):
    """List the arrays anywhere in a value."""
    if isinstance(value, np.ndarray):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [array for each in values for array in arrays_in(each)]


def make(arrays, dice):
    return np.arange(dice.choice(SIZES)) % 97.0


def change(arrays, dice):
    if len(arrays) > 1:  # where one is a view of another, both change, as they do in one thread
        return join(arrays, dice)
    if arrays[0].flags.writeable:
        arrays[0][...] = arrays[0] * 2 + 1
    return dice.choice([arrays[0], float(arrays[0].sum())])


def show(arrays, dice):
    """Hand on what lies in the memory of an input."""
    array = dice.choice(arrays)
    flat = array.reshape(-1)
    views = [array, array.T, array[::-1], flat[::2], flat[flat.size // 3 :], [array, {"same": array}]]
    views += [(flat[1:], flat), np.ma.masked_greater(flat, 50)]
    return dice.choice(views)


def join(arrays, dice):
    return np.concatenate([array.ravel() for array in arrays])[: max(SIZES)]


def keep(arrays, dice):
    if dice.random() < 0.5:  # what was kept is its own, too
        for array, was in _kept:
            if array.flags.writeable:
                array[...] = was[...] = array + 1
    array = dice.choice(arrays)
    _kept.append((array, array.copy()))
    return array[1:]


def task(do, seed, *inputs):
    arrays = [array for each in inputs for array in arrays_in(each)]
    dice = random.Random(seed)
    result = (do if arrays else make)(arrays, dice)
    for array, was in _kept:
        assert np.array_equal(array, was), "what a task has kept has changed"
    del _kept[:-10]
    return result


def random_graph(dice, count=60):
    dsk = {}
    for i in range(count):
        inputs = dice.sample(range(max(0, i - 15), i), min(i, 15, dice.choice([0, 1, 1, 2, 3])))
        do = dice.choice([make, change, change, show, show, join, keep])
        dsk["x", i] = (task, do, dice.random(), *[("x", each) for each in inputs])
    return dsk


def run_with_copies(dsk):
    """Run a graph whose tasks share nothing."""
    values = {}
    for key, (function, do, seed, *inputs) in dsk.items():
        values[key] = copy.deepcopy(function(do, seed, *[copy.deepcopy(values[each]) for each in inputs]))
    _kept.clear()
    return values


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, np.ma.MaskedArray):
        assert np.array_equal(one.mask, other.mask)
    if isinstance(one, np.ndarray):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert np.array_equal(np.asarray(one), np.asarray(other))
    elif isinstance(one, list | tuple | dict):
        assert len(one) == len(other)
        for each in one if isinstance(one, dict) else range(len(one)):
            assert_same(one[each], other[each])
    else:
        assert one == other


@pytest.mark.parametrize("seed", range(8))
def test_answers_are_as_if_each_task_had_copies(engine, seed):
    dice = random.Random(seed)
    kept = []
    for _ in range(3):
        dsk = random_graph(dice)
        keys = dice.sample(sorted(dsk), 8)
        expected = run_with_copies(dsk)
        found = engine.get(dsk, keys)
        for key, value in zip(keys, found, strict=True):
            assert_same(value, expected[key])
        for array in arrays_in(found):
            if array.flags.writeable and dice.random() < 0.3:
                array[...] = -1
        kept.append((found, copy.deepcopy(found)))
        for value, was in kept:
            assert_same(value, was)


@pytest.fixture(autouse=True)
def nothing_kept(engine):
    """Have workers let go of what tasks have kept."""
    yield
    keys = [("forget", i) for i in range(64)]
    engine.get(dict.fromkeys(keys, (forget,)), keys)


def forget():
    _kept.clear()
