"""Tasks that only cut a block: their results lie where it does, as long as that costs little memory."""

import operator
import pickle

import numpy as np
import pytest

from graphmill import Engine
from graphmill.engine import slicing
from graphmill.engine.run import Run
from graphmill.engine.slicing import cut, index_of
from graphmill.graph.legacy import TupleTask
from graphmill.memory.block import Encoded, Extent
from graphmill.memory.codec import decode, encode

SHAPE = (6, 5, 4)
INDICES = [
    (slice(None),),
    (slice(1, 4),),
    (slice(None, None, -1), ...),
    (..., slice(3, 0, -2)),
    (2,),
    (-1, ..., 0),
    (None, slice(2, 100), None),
    (slice(-3, None), slice(1, -1), slice(None, None, 2)),
    (np.int64(3), slice(None, None, -2), None),
    (slice(np.int8(1), np.int16(5)),),
    (),
    (...,),
]


@pytest.fixture(autouse=True)
def however_small(monkeypatch):
    monkeypatch.setattr(slicing, "THRESHOLD", 1)


def placed(array):
    """Encode an array, as if its memory were in the middle of a block; give that, too."""
    memory = []

    def place(each, _owner):
        memory.append(np.concatenate([np.zeros(64, np.uint8), each, np.zeros(32, np.uint8)]))
        return Extent(3, 4096, 64, each.nbytes, memory[-1].nbytes)

    payload, extents = encode(array, place, threshold=1)
    return Encoded.of(payload, extents), memory[0]


def seen(value, memory):
    [extent] = value.extents
    assert extent.offset >= 0
    assert extent.offset + extent.nbytes <= extent.length == memory.nbytes
    return decode(value.payload, [memory[extent.offset : extent.offset + extent.nbytes]])


ARRAYS = {
    "C": np.arange(120.0).reshape(SHAPE),
    "F": np.asfortranarray(np.arange(120, dtype="i2").reshape(SHAPE)),
    "reversed": np.arange(120).astype("M8[s]").reshape(SHAPE)[::-1],
    "part": np.arange(200.0).reshape(10, 5, 4)[2:8],
}


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_part_is_what_numpy_says(name, index):
    value, memory = placed(ARRAYS[name])
    part = cut(value, index)
    found, expected = seen(part, memory), ARRAYS[name][index]
    np.testing.assert_array_equal(found, expected)
    assert (found.dtype, found.strides) == (expected.dtype, expected.strides)
    assert np.shares_memory(found, memory)
    assert part.nbytes == expected.nbytes + len(part.payload)
    # And a part of the part.
    np.testing.assert_array_equal(seen(cut(part, (slice(0, 1), ...)), memory), expected[:1])


@pytest.mark.parametrize(
    "index",
    [
        (6,),
        (-7,),
        (0, 0, 0, 0),
        (..., ...),
        (slice(None, None, 0),),
        (slice("a"),),
        (1, 2, 3),
        (slice(3, 3),),
    ],
    ids=str,
)
def test_what_is_wrong_or_no_array_is_left_to_the_task(index):
    assert cut(placed(ARRAYS["C"])[0], index) is None


def test_other_values_are_left_to_the_task():
    def place(each, _owner):
        return Extent(0, 0, 0, each.nbytes, each.nbytes)

    for value in ([ARRAYS["C"]], np.ma.masked_array(ARRAYS["C"]), b"abc", 7):
        assert cut(Encoded.of(*encode(value, place, threshold=1)), (slice(None),)) is None


def test_what_is_shown_several_times_counts_once():
    value, memory = placed(np.broadcast_to(np.arange(4.0), (1000, 4)))
    part = cut(value, (slice(10), slice(3)))
    np.testing.assert_array_equal(seen(part, memory), [[0, 1, 2]] * 10)
    assert part.nbytes == len(part.payload) + 24


def test_small_parts_are_left_to_the_task(monkeypatch):
    value, _ = placed(ARRAYS["C"])
    monkeypatch.setattr(slicing, "THRESHOLD", 161)
    assert cut(value, (0,)) is None
    assert cut(value, (slice(2),)) is not None


def tuple_task(*spec, needs=("x",)):
    return TupleTask(spec, frozenset(needs))


def test_tuple_tasks_that_cut():
    index = (slice(1, 2), 0, None, ...)
    assert index_of(tuple_task(operator.getitem, "x", index)) == index
    assert index_of(tuple_task(operator.getitem, "x", 5)) == (5,)
    assert index_of(tuple_task(operator.getitem, ("x", 0), slice(3), needs=[("x", 0)])) == (slice(3),)


@pytest.mark.parametrize(
    "task",
    [
        tuple_task(operator.getitem, "x", "name"),
        tuple_task(operator.getitem, "x", [1, 2]),
        tuple_task(operator.getitem, "x", True),
        tuple_task(operator.getitem, "x", (slice(2), np.array([1]))),
        tuple_task(operator.getitem, "x", "x"),
        tuple_task(operator.getitem, "x", np.arange(5)),
        tuple_task(operator.getitem, "x", np.arange(5) > 2),
        tuple_task(operator.getitem, np.arange(5), "x"),
        tuple_task(operator.getitem, ("x", np.arange(5)), 0, needs=[("x", 0)]),
        tuple_task(operator.getitem, "x", "y", needs=["x", "y"]),
        tuple_task(operator.getitem, 0, (0, 1), needs=[0]),  # the second 0 is that array
        tuple_task(operator.getitem, ("x", 0), ("x", 0), needs=[("x", 0)]),
        tuple_task(operator.getitem, (abs, "x"), 0),
        tuple_task(operator.add, "x", 0),
        tuple_task(operator.getitem, "x"),
        TupleTask(["x", 0], frozenset("x")),
        TupleTask((operator.getitem, [1, 2], 0), frozenset()),
    ],
    ids=str,
)
def test_tuple_tasks_that_do_not(task):
    assert index_of(task) is None


def test_tasks_of_dask():
    task_spec = pytest.importorskip("dask._task_spec")
    chunk = pytest.importorskip("dask.array.chunk")
    reference, index = task_spec.TaskRef("x"), (slice(2), 1)
    for function in (operator.getitem, chunk.getitem):
        assert index_of(task_spec.Task("y", function, reference, index)) == index
        assert index_of(task_spec.Task("y", function, task_spec.Alias("x"), index)) == index
        assert index_of(task_spec.Task("y", function, reference, task_spec.DataNode(None, index))) == index
        assert index_of(task_spec.Task("y", function, reference, [0, 1])) is None
        assert index_of(task_spec.Task("y", function, reference, b=index)) is None
        assert index_of(task_spec.Task("y", function, task_spec.TaskRef("z"), task_spec.TaskRef("x"))) is None
        inner = task_spec.Task(None, abs, reference)
        assert index_of(task_spec.Task("y", function, inner, index)) is None
        assert index_of(task_spec.Task("y", function, reference, Five())) is None
    assert index_of(task_spec.Task("y", getitem, reference, index)) is None
    assert index_of(task_spec.DataNode("y", 3)) is None


class Five:
    """An index of its own kind, which also has something else for a value."""

    value = 3

    def __index__(self):
        return 5


def getitem(array, index):
    """Has the name of Dask's, and does something else."""
    return array[index] + 1


# ---- in runs


N = 64


def square():
    return np.arange(N * N, dtype=float).reshape(N, N)


@pytest.fixture
def cuts(monkeypatch):
    """List the tasks whose results lie in a block."""
    found = []
    original = Run._cut

    def watched(self, task):
        part = original(self, task)
        if part is not None:
            found.append(task.key)
        return part

    monkeypatch.setattr(Run, "_cut", watched)
    return found


def halves(user, *more):
    return {
        "x": (square,),
        "upper": (operator.getitem, "x", slice(0, N // 2)),
        "lower": (operator.getitem, "x", (slice(N // 2, None), ...)),
        "y": (user, "upper", "lower", *more),
    }


def test_parts_are_not_copied(engine, cuts):
    found = engine.get(halves(np.subtract), "y")
    np.testing.assert_array_equal(found, square()[: N // 2] - square()[N // 2 :])
    assert sorted(cuts) == ["lower", "upper"]


def spoil(upper, lower):
    upper[:] = -1
    return float(lower.sum())


def test_no_task_sees_what_another_does_to_a_part(engine, cuts):
    graph = halves(spoil) | {
        "again": (operator.getitem, "x", slice(0, N // 2)),
        "z": (lambda part, _: float(part.sum()), "again", "y"),
        "whole": (lambda x, _: float(x.sum()), "x", "z"),
    }
    found = list(engine.get(graph, ["y", "z", "whole"]))
    upper, lower = square()[: N // 2].sum(), square()[N // 2 :].sum()
    assert found == [lower, upper, upper + lower]
    assert "again" in cuts


def test_a_part_that_is_asked_for_does_not_keep_its_block(engine, cuts):
    graph = {"x": (square,), "part": (operator.getitem, "x", (slice(None, None, -1), slice(3)))}
    np.testing.assert_array_equal(engine.get(graph, "part"), square()[::-1, :3])
    assert cuts == []
    assert engine.memory().live < square().nbytes


def test_a_small_part_does_not_keep_its_block(engine, cuts):
    graph = {"x": (square,), "part": (operator.getitem, "x", slice(3)), "y": (np.sum, "part")}
    assert engine.get(graph, "y") == square()[:3].sum()
    assert cuts == []


def test_small_parts_of_parts_do_not_keep_their_block(engine, cuts):
    graph = {"x": (square,)}
    for n in range(4):
        graph[f"x{n + 1}" if n else "x1"] = (operator.getitem, f"x{n}" if n else "x", slice(0, N >> (n + 1)))
    assert engine.get(graph | {"y": (np.sum, "x4")}, "y") == square()[: N >> 4].sum()
    assert cuts == ["x1"]


def test_indices_of_other_kinds(engine, cuts):
    chosen = np.array([3, 1])
    graph = {"x": (square,), "y": (operator.getitem, "x", chosen), "z": (np.sum, "y")}
    assert engine.get(graph, "z") == square()[chosen].sum()
    assert cuts == []


def test_what_is_wrong_raises_what_numpy_raises(engine, cuts):
    with pytest.raises(IndexError, match="out of bounds"):
        engine.get({"x": (square,), "y": (operator.getitem, "x", N)}, "y")
    assert cuts == []


def test_blocks_go_once_no_part_of_them_is_needed(engine):
    for _ in range(3):
        engine.get(halves(spoil), "y")
        assert engine.memory().live == 0


def test_parts_outlive_the_worker_that_made_the_block(cuts, tmp_path):
    with Engine(1) as engine:
        found = engine.get(halves(die_once, str(tmp_path / "died")), "y")
    assert found == square().sum()
    assert sorted(cuts) == ["lower", "upper"]


def die_once(upper, lower, path):
    import os
    from pathlib import Path

    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), 9)
    return float(upper.sum() + lower.sum())


def test_persisted_values_are_cut_whatever_is_taken(engine, cuts):
    da = pytest.importorskip("dask.array")
    x = da.from_array(square(), chunks=N).persist(scheduler=engine.get)
    cuts.clear()
    assert x[:3].sum().compute(scheduler=engine.get, optimize_graph=False) == square()[:3].sum()
    assert len(cuts) == 1
    assert pickle.loads(pickle.dumps(x[:3].compute(scheduler=engine.get))).sum() == square()[:3].sum()


def test_nothing_is_cut_in_place_where_memory_is_little(cuts, monkeypatch, engine):
    monkeypatch.setattr(type(engine.limit), "capacity", 4 * square().nbytes - 1)
    engine.get(halves(np.subtract), "y")
    assert cuts == []


def test_parts_move_to_disk_with_their_block(engine, cuts, monkeypatch):
    original = Run._hold

    def spilled(self, value):
        self._engine.blocks.spill(original(self, value))
        return value

    monkeypatch.setattr(Run, "_hold", spilled)
    np.testing.assert_array_equal(
        engine.get(halves(np.subtract), "y"), square()[: N // 2] - square()[N // 2 :]
    )
    assert len(cuts) == 1  # the other is of a block on disk, so a task reads it
    assert engine.memory().spilled >= square().nbytes
