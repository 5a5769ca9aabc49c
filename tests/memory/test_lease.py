"""Inputs: nobody sees another's changes, and nothing is used again that somebody looks at."""

import errno
import gc
import os
import pickle
import queue
import random
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

from graphmill.memory import lease as lease_module
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import BlockId, Extent
from graphmill.memory.heap import Heap
from graphmill.memory.lease import Reader
from graphmill.memory.mapping import CAN_REVERT, Window
from graphmill.memory.pagemap import PageMap

SIZE = 64 * PAGE
BLOCK = 4 * PAGE

needs_pages = pytest.mark.skipif(
    not (CAN_REVERT and os.access("/proc/self/pagemap", os.R_OK)), reason="the kernel does not tell"
)
needs_revert = pytest.mark.skipif(not CAN_REVERT, reason="inputs are copies here")


@pytest.fixture
def arena():
    with Arena.create(1, SIZE) as arena:
        yield arena


@pytest.fixture
def heap(arena):
    return Heap(arena)


@pytest.fixture
def reader(arena):
    reader = Reader({1: arena})
    yield reader
    reader.close()
    reader.close()


@pytest.fixture
def block(heap):
    return heap.copy_in(np.arange(BLOCK // 8))


def numbers(view):
    return view.view(np.int64)


def original():
    return np.arange(BLOCK // 8)


def count_dirty(arena):
    """How many pages of the arena this process has changed."""
    pages = PageMap()
    found = pages.changed(arena.private_address, arena.size)
    pages.close()
    return sum(last - first for first, last in found)


# ---- reading and writing


def test_a_view_shows_the_buffer_without_a_copy(reader, arena, block):
    view = reader.view(block)
    assert (numbers(view) == original()).all()
    assert view.flags.writeable
    if CAN_REVERT:
        assert view.__array_interface__["data"][0] == arena.private_address + block.block


def test_a_view_of_a_part(reader, heap):
    whole = heap.copy_in(bytes(range(200)))
    part = Extent(whole.arena, whole.block, 100, 50, whole.length)
    assert bytes(reader.view(part)) == bytes(range(100, 150))
    assert len(reader.view(Extent(whole.arena, whole.block, 7, 0, whole.length))) == 0


def test_changes_stay_in_this_process(reader, arena, block):
    numbers(reader.view(block))[:] *= 2
    attached = Arena.attach(arena.handle)
    assert (np.frombuffer(attached.shared, np.int64, BLOCK // 8) == original()).all()
    attached.close()


def test_views_of_one_block_share_their_memory_within_a_task(reader, block):
    one, other = numbers(reader.view(block)), numbers(reader.view(block))
    one[0] = 77
    assert other[0] == 77


def test_an_unknown_arena_is_an_error(reader):
    with pytest.raises(KeyError):
        reader.view(Extent(9, 0, 0, 1, PAGE))


def test_arenas_may_come_later(arena, block):
    arenas = {}
    reader = Reader(arenas)
    arenas[1] = arena
    assert (numbers(reader.view(block)) == original()).all()
    reader.close()


# ---- how long a lease lives

KEEPERS = {
    "the view": lambda view: view,
    "an array": np.asarray,
    "a view of a view": lambda view: view[10:][5:],
    "a transpose": lambda view: view.reshape(4, -1).T[1:],
    "another type": lambda view: view.view(np.float64).reshape(2, -1)[0],
    "a strided view": lambda view: np.lib.stride_tricks.sliding_window_view(view, 7)[::3],
    "a broadcast view": lambda view: np.broadcast_to(view, (3, view.size)),
    "a memoryview": memoryview,
    "a part of a memoryview": lambda view: memoryview(view)[5:7].cast("B"),
    "a pickle buffer": pickle.PickleBuffer,
    "an array over a memoryview": lambda view: np.frombuffer(memoryview(view), np.int32)[::2],
    "a masked array": lambda view: np.ma.masked_array(view, copy=False),
    "an iterator": lambda view: view.flat,
    "a subclass": lambda view: view.view(np.recarray),
    "unpickled": lambda view: pickle.loads(
        pickle.dumps(np.empty(BLOCK // 8), protocol=5, buffer_callback=lambda buffer: False), buffers=[view]
    ),
    "a view of what was unpickled": lambda view: pickle.loads(
        pickle.dumps(np.empty((BLOCK // 16, 2)), protocol=5, buffer_callback=lambda buffer: False),
        buffers=[view],
    ).T[0][3:],
}


@needs_revert
@pytest.mark.parametrize("keep", KEEPERS.values(), ids=KEEPERS)
def test_a_lease_lives_as_long_as_anything_made_of_it(reader, block, keep):
    kept = keep(reader.view(block))
    assert reader.alive() == {block.id}
    reader.drop_dirty(block.id)
    gc.collect()
    assert reader.alive() == {block.id}
    del kept
    gc.collect()
    assert reader.alive() == set()


@needs_revert
def test_copies_do_not_keep_it(reader, block):
    copy = reader.view(block).copy()
    computed = numbers(reader.view(block)) + 1
    assert reader.alive() == set()
    assert computed[1] == numbers(copy)[1] + 1


@needs_revert
def test_a_lease_in_a_cycle_lives_until_the_collection(reader, block):
    cycle = [reader.view(block)]
    cycle.append(cycle)
    del cycle
    assert reader.alive() == {block.id}
    gc.collect()
    assert reader.alive() == set()


@needs_revert
def test_a_lease_can_be_referenced_weakly(reader, block):
    view = reader.view(block)
    lease = weakref.ref(view.base)
    other = reader.view(block)[3:]
    del view
    assert lease() is other.base
    del other
    assert lease() is None


@needs_revert
def test_many_blocks_take_no_more_files(reader, heap, arena):
    files = len(list(Path("/proc/self/fd").iterdir()))
    extents = [heap.copy_in(bytes([number])) for number in range(SIZE // PAGE)]
    views = [reader.view(extent) for extent in extents]
    assert len(reader.alive()) == len(views)
    assert [view[0] for view in views] == list(range(SIZE // PAGE))
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 1


# ---- after a task


@needs_pages
def test_changes_go_with_the_last_view(reader, arena, block):
    view = numbers(reader.view(block))
    view[:] = 7
    assert count_dirty(arena) == BLOCK // PAGE
    del view
    assert count_dirty(arena) == 0
    reader.drop_dirty(block.id)
    assert (numbers(reader.view(block)) == original()).all()


@needs_pages
def test_only_changed_pages_are_mapped_again(reader, arena, block, monkeypatch):
    dropped = []
    monkeypatch.setattr(
        lease_module, "revert", lambda mapping, offset, nbytes: dropped.append((offset, nbytes))
    )
    view = reader.view(block)
    assert view.sum() > 0
    del view
    assert dropped == []
    view = reader.view(block)
    view[PAGE] = view[2 * PAGE] = 1
    del view
    assert dropped == [(block.block + PAGE, 2 * PAGE)]


@needs_pages
def test_many_changed_stretches_go_in_one(reader, heap, arena, monkeypatch):
    monkeypatch.setattr(lease_module, "MANY_RUNS", 2)
    extent = heap.copy_in(bytes(12 * PAGE))
    view = reader.view(extent)
    view[PAGE :: 3 * PAGE] = 1
    del view
    assert count_dirty(arena) == 0
    assert not reader.view(extent).any()


@needs_revert
def test_where_nobody_tells_what_changed_everything_goes(reader, block, monkeypatch):
    monkeypatch.setattr(PageMap, "changed", lambda self, address, nbytes: None)
    view = numbers(reader.view(block))
    view[:] = 7
    assert not reader.is_clean(block)
    del view
    assert (numbers(reader.view(block)) == original()).all()


@needs_revert
def test_whoever_keeps_a_changed_view_keeps_it_and_nobody_else_sees_it(reader, arena, block):
    kept = numbers(reader.view(block))
    kept[0] = 77
    reader.drop_dirty(block.id)
    later = numbers(reader.view(block))
    assert (later == original()).all()
    later[1] = 88
    assert (kept[0], kept[1]) == (77, 1)
    assert numbers(reader.view(block))[1] == 88, "the later task's own views share its changes"
    reader.drop_dirty(block.id)
    third = numbers(reader.view(block))
    assert (third == original()).all()
    assert reader.alive() == {block.id}
    reader.drop_dirty(block.id)
    del kept
    fourth = numbers(reader.view(block))
    assert (fourth == original()).all()
    assert (later[1], third[1]) == (88, 1)
    del later, third, fourth
    assert reader.alive() == set()


@needs_revert
def test_a_later_change_is_not_seen_through_a_view_that_was_kept(reader, block):
    kept = numbers(reader.view(block))
    reader.drop_dirty(block.id)
    numbers(reader.view(block))[:] = 7
    assert (kept == original()).all()


@needs_pages
def test_memory_used_again_never_shows_changes_of_before(reader, heap, arena):
    first = heap.copy_in(bytes([1]) * BLOCK)
    reader.view(first)[:] = 9
    reader.drop_dirty(first.id)
    assert first.id not in reader.alive()
    heap.give_back(first.id, first.length)
    second = heap.copy_in(bytes([2]) * 2 * PAGE)
    third = heap.copy_in(bytes([3]) * 2 * PAGE)
    assert {second.block, third.block} == {first.block, first.block + 2 * PAGE}
    assert set(reader.view(second).tolist()) == {2}
    assert set(reader.view(third).tolist()) == {3}


@needs_revert
def test_blocks_that_were_punched_show_zeros_and_then_the_new_content(reader, heap, arena, block):
    assert reader.view(block).any()
    reader.drop_dirty(block.id)
    arena.punch(block.block, block.length)
    heap.give_back(block.id, block.length, warm=False)
    assert heap.copy_in(bytes([5]) * BLOCK).id == block.id
    assert set(reader.view(block).tolist()) == {5}


# ---- results that are views of inputs


@needs_revert
def test_memory_is_found_in_its_block(reader, heap, block):
    other = heap.copy_in(bytes(PAGE + 5))
    views = [reader.view(block), reader.view(other)]
    start = views[0].__array_interface__["data"][0]
    assert reader.locate(start, BLOCK) == block
    assert reader.locate(start + 8, 16) == Extent(1, block.block, 8, 16, BLOCK)
    assert reader.locate(start + 8, BLOCK) is None
    assert reader.locate(start - 1, 1) is None
    assert reader.locate(views[1].__array_interface__["data"][0], PAGE + 5) == other
    elsewhere = np.ones(10)
    assert reader.locate(elsewhere.__array_interface__["data"][0], 80) is None
    del views
    assert reader.locate(start, BLOCK) is None


@needs_revert
def test_memory_is_found_in_a_mapping_of_its_own_too(reader, block):
    kept = reader.view(block)
    reader.drop_dirty(block.id)
    later = reader.view(block)
    for view in (kept, later):
        assert reader.locate(view.__array_interface__["data"][0], BLOCK) == block
    assert later.__array_interface__["data"][0] != kept.__array_interface__["data"][0]


@needs_pages
def test_clean_is_what_nobody_changed(reader, block):
    view = reader.view(block)
    part = Extent(1, block.block, PAGE, PAGE, BLOCK)
    assert view.sum() > 0
    assert reader.is_clean(block)
    view[0] = view[0]
    assert not reader.is_clean(block)
    assert reader.is_clean(part)
    reader.drop_dirty(block.id)
    later = reader.view(block)
    assert reader.is_clean(part)
    later[PAGE] = 1
    assert not reader.is_clean(part)
    del view, later
    assert reader.is_clean(block)


def test_where_it_cannot_be_told_nothing_is_clean(reader, block, monkeypatch):
    monkeypatch.setattr(PageMap, "changed", lambda self, address, nbytes: None)
    view = reader.view(block)
    assert reader.is_clean(block) == (not CAN_REVERT)
    del view


# ---- without mappings that can be set back, and without room for more of them


@pytest.mark.parametrize("why", ["system", "no more mappings"])
def test_inputs_may_be_copies(arena, block, monkeypatch, why):
    def fail(*arguments):
        raise OSError(errno.ENOMEM, "no more")

    reader = Reader({1: arena})
    kept = None
    if why == "system":
        monkeypatch.setattr(lease_module, "CAN_REVERT", False)
    else:
        monkeypatch.setattr(lease_module, "Window", fail)
        kept = reader.view(block)
        kept[:] = 9
        reader.drop_dirty(block.id)
    one, other = numbers(reader.view(block)), numbers(reader.view(block)[8:])
    assert (one == original()).all()
    one[1] = 77
    assert other[0] == 77, "also of a copy all views of a task share"
    assert reader.alive() == (set() if kept is None else {block.id}), "a copy pins nothing"
    assert reader.locate(one.__array_interface__["data"][0], BLOCK) is None
    reader.drop_dirty(block.id)
    assert (numbers(reader.view(block)) == original()).all()
    assert (np.frombuffer(arena.shared, np.int64, BLOCK // 8) == original()).all()
    reader.close()


# ---- ends


@needs_revert
def test_views_outlive_reader_and_arena(block):
    with Arena.create(1, SIZE) as arena:
        extent = Heap(arena).copy_in(b"abc")
        reader = Reader({1: arena})
        kept = reader.view(extent)
        reader.drop_dirty(extent.id)
        also = reader.view(extent)
    kept[0] = also[1] = ord("x")
    assert (bytes(kept), bytes(also)) == (b"xbc", b"axc")
    del kept
    reader.close()
    del reader, also
    gc.collect()


@needs_revert
def test_a_view_that_outlives_the_reader_changes_nothing_when_it_goes(arena, block):
    reader = Reader({1: arena})
    kept = reader.view(block)
    kept[0] = 9
    reader.close()
    assert reader.alive() == set()
    del kept


@needs_revert
def test_windows_go_with_their_views(arena):
    def maps():
        return Path("/proc/self/maps").read_text().count(arena.handle.name)

    before = maps()
    views = [np.asarray(Window(arena.descriptor, 2 * at * PAGE, PAGE)) for at in range(5)]
    assert maps() == before + 5
    del views
    assert maps() == before


# ---- other systems

ELSEWHERE = """
import mmap, os, sys
from pathlib import Path

for module, names in ((mmap, "MADV_REMOVE MADV_DONTNEED MAP_NORESERVE"), (os, "posix_fallocate")):
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

import numpy as np
from graphmill.memory import leftovers, pagemap
from graphmill.memory.arena import Arena
from graphmill.memory.heap import Heap
from graphmill.memory.lease import Reader
from graphmill.memory.numpy_handler import NumpyHandler

leftovers.PROC = Path(sys.argv[1], "none")
folder = Path(sys.argv[1]) if sys.argv[2] == "file" else None
with Arena.create(0, 1 << 24, folder) as arena:
    heap, reader = Heap(arena), Reader({0: arena})
    handler = NumpyHandler.create(heap)
    for round in range(20):
        with handler:
            result = np.full(100_000, float(round))
            zeros = np.zeros(50_000)
        assert not zeros.any()
        claim = heap.claim(result.ctypes.data, result.nbytes)
        del result, zeros
        extent = heap.settle(claim)
        view = reader.view(extent).view(float)
        assert (view == round).all()
        view[:] = -1
        reader.drop_dirty(extent.id)
        assert (reader.view(extent).view(float) == round).all()
        assert (view == -1).all()
        assert reader.alive() == set()
        assert reader.locate(view.ctypes.data, view.nbytes) is None
        heap.trim(1 << 24)
        warm = arena.punch(extent.block, extent.length)
        heap.give_back(extent.id, extent.length, warm=not warm)
    print(warm, heap.usage().warm >= extent.length)
    handler.close()
    reader.close()
"""


@pytest.mark.usefixtures("needs_handler")
@pytest.mark.parametrize("kind", ["shared memory", "file"])
def test_without_what_only_linux_has_it_is_slower_but_right(script, tmp_path, kind):
    assert script(ELSEWHERE, tmp_path, kind) == "False True\n"


# ---- other processes, other threads


@needs_pages
def test_a_forked_process_drops_its_own_changes_only(script):
    source = """
import os
import numpy as np
from graphmill.memory.arena import Arena
from graphmill.memory.heap import Heap
from graphmill.memory.lease import Reader

with Arena.create(0, 1 << 20) as arena:
    extent = Heap(arena).copy_in(bytes([1]) * 8192)
    mine = Reader({0: arena})
    view = mine.view(extent)
    view[:] = 2
    child = os.fork()
    if not child:
        attached = Arena.attach(arena.handle)
        reader = Reader({0: attached})
        theirs = reader.view(extent)
        ok = set(theirs.tolist()) == {1} and reader.is_clean(extent)
        theirs[0] = 3
        ok = ok and not reader.is_clean(extent)
        del theirs
        reader.drop_dirty(extent.id)
        os._exit(not (ok and set(reader.view(extent).tolist()) == {1}))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(set(view.tolist()), set(arena.shared[:8192]))
"""
    assert script(source) == "{2} {1}\n"


def let_go(box):
    """Drop what comes, at once, until there is nothing."""
    while box.get(timeout=60) is not None:
        pass


@needs_pages
def test_views_may_go_on_any_thread(reader, heap):
    """One thread looks and changes; others let go of what it looked at."""
    extents = [heap.copy_in(bytes([number]) * 2 * PAGE) for number in range(1, 17)]
    boxes = [queue.SimpleQueue() for _ in range(3)]
    threads = [threading.Thread(target=let_go, args=(box,)) for box in boxes]
    for thread in threads:
        thread.start()
    wrong = []
    draw = random.Random(0)
    for number in range(1000):
        at = draw.randrange(16)
        view = reader.view(extents[at])
        if set(view[:: PAGE // 2].tolist()) != {at + 1}:
            wrong.append(number)
        view[:] = 99
        if set(view[:: PAGE // 2].tolist()) != {99}:
            wrong.append(number)
        assert extents[at].id in reader.alive()
        draw.choice(boxes).put(view)
        del view
        reader.drop_dirty(extents[at].id)
    for box, thread in zip(boxes, threads, strict=True):
        box.put(None)
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert reader.alive() == set()
    assert all(reader.is_clean(extent) for extent in extents)
    assert {BlockId(1, extent.block) for extent in extents} == {extent.id for extent in extents}
