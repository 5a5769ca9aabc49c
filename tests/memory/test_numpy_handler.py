"""Arrays born in an arena, and the way out of every corner."""

import contextvars
import ctypes
import gc
import operator
import pickle
import shutil
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from graphmill.errors import ArenaFull
from graphmill.memory import numpy_handler
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.heap import Heap, HeapUsage
from graphmill.memory.numpy_handler import (
    ADDRESS,
    LIBRARY,
    THRESHOLD,
    LargeMemory,
    NumpyHandler,
    Record,
    find_interface,
    load_library,
)

SIZE = 32 << 20
BIG = 2 * THRESHOLD // 8  # numbers of eight bytes

pytestmark = pytest.mark.usefixtures("needs_handler")


@pytest.fixture
def arena():
    with Arena.create(1, SIZE) as arena:
        yield arena


@pytest.fixture
def heap(arena):
    return Heap(arena)


@pytest.fixture
def handler(heap):
    handler = NumpyHandler.create(heap)
    yield handler
    handler.close()
    assert handler.take_failure() is None


def address(array):
    return array.__array_interface__["data"][0]


def in_arena(array, arena):
    return arena.address <= address(array) < arena.address + arena.size


def publish(heap, make):
    """Claim what a function returns, let go of it, and settle."""
    array = make()
    claim = heap.claim(address(array), array.nbytes)
    del array
    return heap.settle(claim)


def read(arena, extent):
    return (
        np.frombuffer(arena.shared, np.uint8, extent.nbytes, extent.block + extent.offset).view(float).copy()
    )


# ---- where arrays come from


def test_large_arrays_are_born_in_the_arena_while_it_is_on(handler, arena):
    before = np.empty(BIG)
    with handler:
        inside = [np.empty(BIG), np.zeros(BIG), np.ones(BIG) + 1, np.arange(BIG), before.copy()]
        edge = np.empty(THRESHOLD, np.uint8)
        small = [np.empty(10), np.zeros(10), np.empty(THRESHOLD - 1, np.uint8), np.empty(0)]
    after = np.empty(BIG)
    assert all(in_arena(each, arena) for each in [*inside, edge])
    assert not any(in_arena(each, arena) for each in [before, *small, after])
    assert (inside[2] == 2).all()
    assert (inside[3] == range(BIG)).all()


def test_unpickled_arrays_are_born_there_too(handler, arena):
    data = pickle.dumps(np.arange(BIG))
    with handler:
        assert in_arena(np.copy(pickle.loads(data)), arena)


def test_it_can_be_switched_any_number_of_times(handler, arena):
    assert not handler.is_on
    for _ in range(2):
        handler.switch_on()
        handler.switch_on()
        assert handler.is_on
        assert in_arena(np.empty(BIG), arena)
        handler.switch_off()
        handler.switch_off()
        assert not in_arena(np.empty(BIG), arena)


def test_a_handler_that_was_there_before_comes_back(handler, arena):
    with Arena.create(2, SIZE) as other_arena:
        other = NumpyHandler.create(Heap(other_arena))
        with handler:
            with other:
                inner = np.empty(BIG)
            outer = np.empty(BIG)
        assert in_arena(inner, other_arena)
        assert in_arena(outer, arena)
        del inner
        other.close()


def test_other_threads_are_left_alone(handler, arena):
    found = []
    with handler:
        thread = threading.Thread(target=lambda: found.append(np.empty(BIG)))
        thread.start()
        thread.join(60)
    assert not in_arena(found[0], arena)


# ---- what NumPy asks of an allocator


def test_memory_used_before_is_zeroed(handler, arena):
    with handler:
        first = np.full(BIG, 7.0)
        where = address(first)
        del first
        second = np.zeros(BIG)
        assert address(second) == where
        assert not second.any()
        for size in (10, 1000):
            del_me = np.full(size, 7.0)
            del del_me
            assert not np.zeros(size).any()


def test_the_same_memory_is_used_again(handler, heap):
    with handler:
        places = set()
        for _ in range(5):
            x = np.ones(BIG)
            y = x + 1
            places |= {address(x), address(y)}
            assert (y == 2).all()
            del x, y
    assert len(places) == 2
    assert heap.usage() == HeapUsage(0, 0, 4 * THRESHOLD)


@pytest.mark.parametrize(
    "sizes",
    [
        [BIG, 2 * BIG, BIG // 2, 3 * BIG],
        [10, BIG, 20],
        [BIG, 10, 2 * BIG],
        [BIG, 0, BIG],
        [0, 10, 10],
    ],
)
def test_resizing_keeps_the_content(handler, sizes):
    with handler:
        array = np.arange(float(sizes[0]))
        for size in sizes[1:]:
            kept = min(size, len(array))
            before = array[:kept].copy()
            array.resize(size, refcheck=False)
            assert (array[:kept] == before).all()
            assert not array[kept:].any()
            array[:] = np.arange(size)
        assert np.resize(np.arange(BIG), 3 * BIG)[2 * BIG + 5] == 5


def test_arrays_that_grow_while_they_are_read(handler):
    with handler:
        found = np.fromiter((each for each in range(5 * BIG)), dtype=float)
    assert (found == np.arange(5 * BIG)).all()


def test_sorting_and_other_work_in_buffers(handler, heap):
    with handler:
        x = np.arange(4 * BIG)[::-1] % 1000.0
        assert (np.sort(x, kind="stable") == sorted(x)).all()
        assert (np.unique(x) == np.arange(1000)).all()
        assert np.median(x) == sorted(x)[len(x) // 2]
        assert (x.reshape(-1, 128) == x.reshape(-1, 128).T.copy().T).all()
        objects = np.array([[1], "a", None] * BIG, dtype=object)
        assert objects[3] == [1]
        del x, objects
    gc.collect()
    assert heap.usage().live == 0


@pytest.mark.parametrize("first", ["array", "handler"])
@pytest.mark.parametrize("size", [10, BIG])
def test_arrays_and_handler_may_go_in_either_order(arena, heap, size, first):
    handler = NumpyHandler.create(heap)
    with handler:
        array = np.arange(float(size))
    assert (array == range(size)).all()
    array.resize(size + 1, refcheck=False)
    if first == "array":
        del array
        handler.close()
    else:
        handler.close()
        arena.close()
        array += 1
        assert array[5] == 6
        array.resize(2 * size, refcheck=False)
        assert array[5] == 6
        del array
    handler.close()
    assert heap.usage().live == 0
    with pytest.raises(ValueError, match="closed"):
        handler.switch_on()
    assert handler.take_failure() is None


def test_the_heap_goes_with_the_last_array(arena):
    heap = Heap(arena)
    handler = NumpyHandler.create(heap)
    with handler:
        large, small = np.ones(BIG), np.ones(10)
    gone, mapping = weakref.ref(heap), weakref.ref(arena.shared)
    handler.close()
    arena.close()
    del handler, heap
    large += 1
    del large
    assert small.sum() == 10
    del small
    assert gone() is None
    assert mapping() is None


def test_the_heap_goes_before_small_arrays_if_there_are_no_large_ones(arena):
    heap = Heap(arena)
    handler = NumpyHandler.create(heap)
    with handler:
        large, small = np.ones(BIG), np.ones(10)
    gone = weakref.ref(heap)
    del large
    handler.close()
    handler.close()
    del heap
    assert gone() is None
    small.resize(BIG, refcheck=False)
    assert small.sum() == 10


def test_thousands_of_arrays_go_at_once(arena, heap):
    handler = NumpyHandler.create(heap, 4 * PAGE)
    with handler:
        arrays = [np.full(2 * PAGE // 4, number) for number in range(8000)]
        born = sum(in_arena(array, arena) for array in arrays)
        assert all((array == number).all() for number, array in enumerate(arrays))
        assert 100 < born < 8000, "the arena has room for some of them"
        del arrays
        assert in_arena(np.empty(SIZE - PAGE, np.uint8), arena), "all of it is free again"
    assert heap.usage().live == 0
    handler.close()


def test_arrays_may_be_freed_on_other_threads(handler, heap):
    with handler:
        heaps_of = [[np.full(BIG, float(number)) for number in range(10)] for _ in range(4)]
    threads = [threading.Thread(target=arrays.clear) for arrays in heaps_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert heap.usage() == HeapUsage(0, 0, 40 * 2 * THRESHOLD)


def test_freed_memory_keeps_its_content_until_it_is_used_again(handler, arena, heap):
    with handler:
        array = np.arange(float(BIG))
        claim = heap.claim(address(array), array.nbytes)
        where = address(array)
        other = np.ones(BIG)
        del array, other
        assert ctypes.string_at(where, 8 * BIG) == np.arange(float(BIG)).tobytes()
        assert where not in {address(np.empty(BIG)) for _ in range(5)}
        extent = heap.settle(claim)
    assert arena.address + extent.block == where
    assert (read(arena, extent) == range(BIG)).all()


# ---- while an exception is on its way


def fail_in_many_ways(size):
    """Errors of NumPy's, each with arrays freed while it is on its way. Returns how many there were."""
    found = 0
    read_only = np.ones(size)
    read_only.flags.writeable = False
    x = np.ones(size)
    for function in (
        lambda: np.multiply(read_only, 2, out=read_only),
        lambda: (x + 1) * np.ones(size + 1),
        lambda: np.add(x * 2, [1.0, 2.0, 3.0, 4.0]),
        lambda: np.concatenate([x + 1, np.ones((2, 2))]),
        lambda: (x + 1).reshape(7, -1, 11, 13, 17),
        lambda: np.array([x, [x + 1, (x + 2).undefined]], dtype=float),
        lambda: np.fromiter((i if i < size - 1 else (1, 2) for i in range(size)), dtype=float),
    ):
        try:
            function()
        except (ValueError, AttributeError, TypeError) as error:
            found += 1
            assert type(error) in (ValueError, AttributeError, TypeError)  # noqa: PT017  # no SystemError
            try:
                (x - 1) @ np.ones((size + 1, 1))
            except ValueError as second:
                assert second.__context__ is error  # noqa: PT017  # it is not lost
                found += 1
    return found


@pytest.mark.parametrize("size", [3, BIG])
def test_an_exception_on_its_way_survives(handler, heap, size, capfd):
    with handler:
        assert fail_in_many_ways(size) == 14
    assert heap.usage().live == 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [3, BIG])
def test_a_thousand_exceptions_survive(handler, heap, size):
    with handler:
        x, other = np.ones(size), np.ones(size + 1)
        for _ in range(1000):
            with pytest.raises(ValueError, match="broadcast"):
                (x + 1) * other
        del x, other
    assert heap.usage().live == 0


#: Raises an exception, and calls the handler while it is on its way.
PENDING = """
#include <stddef.h>
extern void *PyExc_KeyError;
extern void PyErr_SetString(void *, const char *);
void *try_malloc(void *(*function)(void *, size_t), void *context, size_t nbytes, void **found) {
    PyErr_SetString(PyExc_KeyError, "mine");
    *found = function(context, nbytes);
    return NULL;
}
void *try_realloc(void *(*function)(void *, void *, size_t), void *context, size_t nbytes, void **found) {
    PyErr_SetString(PyExc_KeyError, "mine");
    *found = function(context, *found, nbytes);
    return NULL;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_memory_asked_for_while_an_exception_is_on_its_way(handler, arena, heap, tmp_path):
    source = tmp_path / "pending.c"
    source.write_text(PENDING)
    compiled = str(tmp_path / "pending.so")
    subprocess.run(
        [
            "cc",
            "-shared",
            "-fPIC",
            *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []),
            "-o",
            compiled,
            source,
        ],
        check=True,
    )
    library = ctypes.PyDLL(compiled)
    for function in (library.try_malloc, library.try_realloc):
        function.restype = ctypes.py_object
        function.argtypes = [ADDRESS, ADDRESS, ctypes.c_size_t, ctypes.c_void_p]
    with handler:
        pointer = ctypes.PYFUNCTYPE(ADDRESS, ctypes.py_object, ctypes.c_char_p)
        record = Record.from_address(
            pointer(("PyCapsule_GetPointer", ctypes.pythonapi))(handler._capsule, b"mem_handler")
        )
    found = ADDRESS()
    with pytest.raises(KeyError, match="mine"):
        library.try_malloc(record.malloc, record.context, THRESHOLD, ctypes.byref(found))
    assert found.value in heap.live
    ctypes.memset(found.value, 7, THRESHOLD)
    for nbytes in (4 * THRESHOLD, 2 * SIZE):
        with pytest.raises(KeyError, match="mine"):
            library.try_realloc(record.realloc, record.context, nbytes, ctypes.byref(found))
        assert ctypes.string_at(found.value, THRESHOLD) == b"\7" * THRESHOLD
    assert found.value not in heap.live
    free = ctypes.PYFUNCTYPE(None, ADDRESS, ADDRESS, ctypes.c_size_t)(record.free)
    free(record.context, found.value, 2 * SIZE)
    assert heap.usage().live == 0


# ---- when something goes wrong in there


def test_a_full_arena_is_no_error(handler, arena, heap):
    with handler:
        large = np.ones(SIZE // 8 - BIG)
        other = np.ones(2 * BIG)
        zeros = np.zeros(2 * BIG)
    assert in_arena(large, arena)
    assert not in_arena(other, arena)
    assert not in_arena(zeros, arena)
    assert heap.claim(address(other), other.nbytes) is None
    assert (other.sum(), zeros.sum()) == (2 * BIG, 0)


def test_an_array_that_outgrows_the_arena_moves_out_of_it(handler, arena, heap):
    with handler:
        array = np.arange(BIG)
        assert in_arena(array, arena)
        array.resize(SIZE, refcheck=False)
        assert not in_arena(array, arena)
        assert (array[:BIG] == range(BIG)).all()
        assert not array[BIG:].any()
        array.resize(2 * SIZE, refcheck=False)
    assert heap.usage().live == 0


def test_while_the_heap_is_busy_memory_comes_from_elsewhere(handler, arena, heap):
    with handler:
        array = np.arange(BIG)
        with heap._lock:
            other = np.ones(BIG)
            array.resize(2 * BIG, refcheck=False)
            assert heap.usage().live == 2 * THRESHOLD, "it is released when the heap is used again"
        assert not in_arena(other, arena)
        assert not in_arena(array, arena)
        assert (array[:BIG] == range(BIG)).all()
        assert in_arena(np.empty(BIG), arena)
    assert heap.usage().live == 0


@pytest.mark.parametrize("make", [np.empty, np.zeros])
def test_more_memory_than_there_is(handler, make):
    with handler, pytest.raises(MemoryError):
        make(1 << 60, np.uint8)
    with handler:
        array = make(10)
        with pytest.raises(MemoryError):
            array.resize(1 << 57, refcheck=False)
        assert len(array) == 10
        array = make(BIG)
        array[:] = 1
        with pytest.raises(MemoryError):
            array.resize(1 << 57, refcheck=False)
        assert array.sum() == BIG


class Interrupted(BaseException):
    """As KeyboardInterrupt, but nothing else reacts to it."""


@pytest.mark.parametrize("name", ["allocate", "resize"])
def test_nothing_is_raised_out_of_it_but_it_is_told_once(handler, arena, monkeypatch, name, capfd):
    with handler:
        array = np.ones(BIG)
        error = Interrupted()

        def fail(*arguments):
            raise error

        monkeypatch.setattr(Heap, name, fail)
        if name == "allocate":
            arrays = [np.ones(BIG), np.zeros(BIG)]
            assert [each.sum() for each in arrays] == [BIG, 0]
            assert not any(in_arena(each, arena) for each in arrays)
        else:
            with pytest.raises(MemoryError):
                array.resize(2 * BIG, refcheck=False)
            assert array.sum() == BIG
        monkeypatch.undo()
        assert handler.take_failure() is error
        assert handler.take_failure() is None
        assert np.ones(BIG).sum() == BIG
    assert capfd.readouterr() == ("", "")


def test_code_that_is_left_at_its_very_start_changes_nothing(heap, arena, monkeypatch, capfd):
    """A signal's handler may raise before the first line of a function, where nothing can catch it."""

    def leave(*arguments):
        raise Interrupted

    monkeypatch.setattr(LargeMemory, "answer", leave)
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda about: told.append(about.exc_type))
    handler = NumpyHandler.create(heap)
    with handler:
        arrays = [np.ones(BIG), np.zeros(BIG)]
    assert [each.sum() for each in arrays] == [BIG, 0]
    assert told == [Interrupted] * 2
    handler.close()


# ---- results


def test_a_result_nobody_else_holds_is_published_where_it_lies(handler, arena, heap):
    where = []

    def make():
        x = np.full(BIG, 3.0)
        y = x + 1
        where.append(address(y))
        return y

    with handler:
        extent = publish(heap, make)
    assert arena.address + extent.block + extent.offset == where[0]
    assert (read(arena, extent) == 4).all()
    assert heap.usage() == HeapUsage(0, extent.length, 2 * THRESHOLD)
    with handler:
        others = [np.full(BIG, 9.0) for _ in range(10)]
    assert (read(arena, extent) == 4).all()
    del others
    heap.give_back(extent.id, extent.length)


_buf = None


def add_one(x):
    np.add(x, 1, out=_buf)
    return _buf


def test_a_buffer_that_a_function_uses_again_is_copied_each_time(handler, arena, heap):
    global _buf  # noqa: PLW0603  # functions that keep a buffer do just this
    with handler:
        _buf = np.empty(THRESHOLD // 8)
        assert in_arena(_buf, arena)
        extents = [publish(heap, lambda i=i: add_one(np.full(THRESHOLD // 8, float(i)))) for i in range(100)]
    assert len({extent.id for extent in extents}) == 100
    for i, extent in enumerate(extents):
        assert (read(arena, extent) == i + 1).all()
    _buf = None
    assert heap.usage().live == 0


def test_a_result_in_a_cycle_is_copied(handler, arena, heap):
    with handler:
        array = np.full(BIG, 5.0)
        cycle = [array]
        cycle.append(cycle)
        claim = heap.claim(address(array), array.nbytes)
        del array, cycle
        extent = heap.settle(claim)
    assert (read(arena, extent) == 5).all()
    gc.collect()
    assert heap.usage().live == 0


@pytest.mark.parametrize(
    ("view", "in_place"),
    [
        (lambda x: x.reshape(2, -1).T, True),
        (lambda x: x[: BIG // 2], True),
        (lambda x: x[BIG // 2 :], True),
        (lambda x: x[: BIG // 2 - 1], False),
        (lambda x: x[-10:], False),
    ],
)
def test_views_are_published_in_place_if_they_show_half(handler, arena, heap, view, in_place):
    with handler:
        array = view(np.full(BIG, 5.0))
        claim = heap.claim(address(array), array.nbytes)
        del array
    assert (claim is not None) == in_place
    if claim is not None:
        assert (read(arena, heap.settle(claim)) == 5).all()
    assert heap.usage().live == 0


def test_what_is_not_contiguous_or_not_ours_is_left_to_the_caller(handler, heap):
    elsewhere = np.ones(BIG)
    with handler:
        assert heap.claim(address(elsewhere), elsewhere.nbytes) is None
        assert heap.claim(address(np.ones(10)), 80) is None


# ---- from several sides at once


def test_collections_and_threads_in_the_middle_of_it(handler, heap):
    """Four threads that all have the handler, and collections all the time."""
    wrong = []

    def work(mark):
        for number in range(150):
            array = np.full(BIG if number % 2 else 10, float(mark))
            cycle = [array]
            cycle.append(cycle)
            grown = array + 0
            grown.resize(2 * len(array), refcheck=False)
            if not (array == mark).all() or grown.sum() != mark * len(array):
                wrong.append((mark, number))

    threshold = gc.get_threshold()
    gc.set_threshold(7, 2, 2)
    try:
        with handler:
            contexts = [contextvars.copy_context() for _ in range(4)]
            threads = [threading.Thread(target=contexts[i].run, args=(work, i + 1)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
    finally:
        gc.set_threshold(*threshold)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    gc.collect()
    heap.trim(0)
    assert heap.usage().live == 0


# ---- the end of the process


@pytest.mark.parametrize("ending", ["on", "off", "closed", "arena closed", "all closed", "failed"])
def test_an_exit_with_arrays_alive_says_nothing(script, ending):
    source = """
import sys
import numpy as np
from graphmill.memory.arena import Arena
from graphmill.memory.heap import Heap
from graphmill.memory.numpy_handler import NumpyHandler

arena = Arena.create(0, 64 << 20)
handler = NumpyHandler.create(Heap(arena))
handler.switch_on()

class Late:
    "Lives until the very end, in a cycle, with arrays of both kinds."
    def __init__(self):
        self.itself, self.arrays = self, [np.ones(100_000), np.ones(10)]
    def __del__(self, np=np):
        self.arrays.append(np.ones(200_000))
        self.arrays[0] = self.arrays[2] + 1

large, small, late = np.ones(100_000), np.ones(10), Late()
many = [np.ones(size) for size in range(1, 5000)]
np.late = Late()
ending = sys.argv[1]
if ending != "on":
    handler.switch_off()
if "closed" in ending:
    handler.close()
if ending == "arena closed":
    arena.close()
if ending == "all closed":
    arena.close()
    arena.unlink()
    del handler, arena
print(large.sum() + small.sum())
if ending == "failed":
    sys.exit(3)
"""
    assert script(source, ending, returncode=3 if ending == "failed" else 0) == "100010.0\n"


# ---- where there is no such thing


@pytest.mark.parametrize(
    "what", ["other Python", "other NumPy", "no table", "not the table", "other version"]
)
def test_where_numpy_does_not_offer_it_there_is_none(monkeypatch, heap, what):
    if what == "other Python":
        monkeypatch.setattr(numpy_handler.sys.implementation, "name", "pypy")
    elif what == "other NumPy":
        monkeypatch.setattr(numpy_handler, "MODULES", ("numpy.none", "numpy.none_either"))
    elif what == "no table":
        monkeypatch.setattr(numpy_handler, "MODULES", ("numpy", "numpy"))
    elif what == "not the table":
        capsule = find_interface().capsule
        monkeypatch.setattr(numpy_handler, "find_table", lambda: capsule)
    else:
        monkeypatch.setattr(numpy_handler, "VERSION", 2)
    assert NumpyHandler.create(heap) is None


def test_older_numpy_has_it_elsewhere(monkeypatch):
    monkeypatch.setattr(numpy_handler, "MODULES", ("numpy.none", "numpy._core._multiarray_umath"))
    assert find_interface() is not None


def test_the_default_is_what_it_says(heap):
    default = find_interface().default
    assert default.name == b"default_allocator"
    assert ctypes.sizeof(default) == 128 + 5 * ctypes.sizeof(ctypes.c_void_p)
    assert operator.truth(default.malloc)
    with pytest.raises(ArenaFull):
        heap.allocate(SIZE + PAGE)


# ---- where it was not compiled, or wrongly


def test_without_the_compiled_part_there_is_none(monkeypatch, heap, tmp_path, caplog):
    monkeypatch.setattr(numpy_handler, "LIBRARY", tmp_path / "_handler.so")
    assert NumpyHandler.create(heap) is None
    assert caplog.messages == []


def test_a_file_that_cannot_be_loaded_is_told_of_once(monkeypatch, heap, tmp_path, caplog):
    path = tmp_path / "_handler.so"
    path.write_bytes(b"for another machine")
    monkeypatch.setattr(numpy_handler, "LIBRARY", path)
    assert [NumpyHandler.create(heap), NumpyHandler.create(heap)] == [None, None]
    (message,) = caplog.messages
    assert "results are copied, since _handler.so cannot be used" in message


@pytest.mark.parametrize("what", ["other size", "other library"])
def test_a_file_of_another_version_is_not_used(monkeypatch, heap, tmp_path, caplog, what):
    path = tmp_path / "_handler.so"
    if what == "other size":
        shutil.copy(LIBRARY, path)
        monkeypatch.setattr(numpy_handler, "State", ctypes.c_char)
    else:
        shutil.copy(find_math(), path)
    assert load_library(path) is None
    assert len(caplog.messages) == 1


def find_math():
    """A library that has nothing to do with it."""
    import _ctypes

    return _ctypes.__file__
