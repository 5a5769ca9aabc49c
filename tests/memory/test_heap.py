"""The allocator of a process, and how its memory becomes blocks."""

import ctypes
import gc
import pickle
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from graphmill.errors import ArenaFull
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import BlockId, Extent
from graphmill.memory.heap import Heap, HeapUsage
from graphmill.memory.mapping import CAN_REVERT
from graphmill.memory.segments import SHARED_MEMORY

SIZE = 32 * PAGE


@pytest.fixture
def arena():
    with Arena.create(1, SIZE) as arena:
        yield arena


@pytest.fixture
def overflow(tmp_path):
    with Arena.create(2, SIZE, tmp_path) as arena:
        yield arena


@pytest.fixture
def heap(arena):
    return Heap(arena)


def put(address, data):
    ctypes.memmove(address, data, len(data))


def content(arena, extent):
    start = extent.block + extent.offset
    return bytes(arena.shared[start : start + extent.nbytes])


# ---- memory


def test_memory_is_whole_pages_of_the_arena(heap, arena):
    address = heap.allocate(PAGE + 1)
    assert address == arena.address
    put(address, b"x" * (PAGE + 1))
    assert arena.shared[PAGE] == ord("x")
    assert heap.usage() == HeapUsage(live=2 * PAGE, published=0, warm=0)
    heap.release(address)
    assert heap.usage() == HeapUsage(live=0, published=0, warm=2 * PAGE)
    assert heap.allocate(2 * PAGE) == address


def test_pages_that_were_all_in_use_at_once_are_no_excess(heap):
    heap.begin(None)
    first, second = heap.allocate(4 * PAGE), heap.allocate(2 * PAGE)
    heap.release(first)
    heap.release(second)
    assert heap.usage().warm == 6 * PAGE
    assert heap.excess(PAGE) <= 0, "so many were needed at once"
    assert heap.excess(0) == 6 * PAGE, "nothing is to be kept"
    heap.forget_most()
    assert heap.excess(PAGE) == 5 * PAGE
    heap.allocate(3 * PAGE)
    assert heap.excess(PAGE) == 2 * PAGE


def test_a_few_pages_beyond_what_was_in_use_at_once_are_no_excess():
    with closing(Arena.create(9, 256 * PAGE)) as arena:
        heap = Heap(arena)
        heap.begin(None)
        heap.allocate(126 * PAGE)
        too_short = heap.allocate(PAGE)
        heap.copy_in(bytes(PAGE))
        heap.release(too_short)
        heap.allocate(2 * PAGE)
        assert heap.usage() == HeapUsage(live=128 * PAGE, published=PAGE, warm=PAGE)
        assert heap.excess(0) == PAGE, "nothing is to be kept"
        assert heap.excess(1) == 0


def test_pages_are_reserved_before_anybody_writes(heap, arena):
    heap.allocate(5 * PAGE)
    assert arena.occupied() == 5 * PAGE


def test_memory_used_before_is_zeroed_when_asked(heap):
    address = heap.allocate(2 * PAGE)
    put(address, b"x" * 2 * PAGE)
    heap.release(address)
    assert heap.allocate(2 * PAGE, zeroed=True) == address
    assert ctypes.string_at(address, 2 * PAGE) == bytes(2 * PAGE)


def test_memory_used_in_part_before_is_zeroed_when_asked(heap):
    address = heap.allocate(2 * PAGE)
    put(address, b"x" * 2 * PAGE)
    heap.release(address)
    assert heap.allocate(4 * PAGE, zeroed=True) == address
    assert ctypes.string_at(address, 4 * PAGE) == bytes(4 * PAGE)


def test_fresh_memory_is_not_zeroed_again(heap, monkeypatch):
    monkeypatch.setattr(ctypes, "memset", None)
    assert ctypes.string_at(heap.allocate(2 * PAGE, zeroed=True), 2 * PAGE) == bytes(2 * PAGE)


def test_shorter_memory_stays_and_its_end_is_free(heap):
    address = heap.allocate(4 * PAGE)
    put(address, b"abc")
    assert heap.resize(address, PAGE + 1) == address
    assert ctypes.string_at(address, 3) == b"abc"
    assert heap.usage() == HeapUsage(2 * PAGE, 0, 2 * PAGE)
    assert heap.resize(address, 2 * PAGE) == address
    heap.release(address)
    assert heap.usage() == HeapUsage(0, 0, 4 * PAGE)


def test_longer_memory_moves_with_what_it_holds(heap):
    address = heap.allocate(PAGE)
    put(address, b"abc" + bytes(PAGE - 6) + b"xyz")
    moved = heap.resize(address, 3 * PAGE)
    assert moved != address
    assert ctypes.string_at(moved, PAGE) == b"abc" + bytes(PAGE - 6) + b"xyz"
    assert list(heap.live) == [moved]


def test_memory_that_cannot_grow_is_still_good(heap):
    address = heap.allocate(SIZE - PAGE)
    put(address, b"abc")
    with pytest.raises(ArenaFull):
        heap.resize(address, SIZE + 1)
    assert ctypes.string_at(address, 3) == b"abc"
    heap.release(address)


def test_idle_memory_goes_back_to_the_system(heap, arena):
    for address in [heap.allocate(4 * PAGE) for _ in range(4)]:
        heap.release(address)
    assert heap.trim(3 * PAGE + 1) == 4 * PAGE
    assert (arena.occupied(), heap.usage().warm) == (12 * PAGE, 12 * PAGE)
    assert heap.trim(SIZE) == 12 * PAGE
    assert heap.trim(SIZE) == 0
    assert arena.occupied() == 0


def test_where_nothing_goes_back_memory_stays_warm(heap, arena, monkeypatch):
    heap.release(heap.allocate(4 * PAGE))
    monkeypatch.setattr(arena, "punch", lambda offset, nbytes: False)
    assert heap.trim(SIZE) == 0
    assert heap.usage().warm == 4 * PAGE


# ---- when there is no room


class Disk:
    """How much a file system has left: stands in for it in `Arena.reserve`."""

    def __init__(self, arena, room, monkeypatch):
        self.arena, self.room = arena, room
        self.reserve = arena.reserve
        monkeypatch.setattr(arena, "reserve", self)

    def __call__(self, offset, nbytes):
        before = self.arena.occupied()
        self.reserve(offset, nbytes)
        if self.arena.occupied() > self.room:
            assert self.arena.occupied() > before
            raise ArenaFull("disk full")


def test_the_second_arena_takes_over(arena, overflow, monkeypatch):
    heap = Heap(arena, overflow)
    Disk(arena, 4 * PAGE, monkeypatch)
    first, second = heap.allocate(3 * PAGE), heap.allocate(2 * PAGE)
    assert (first, second) == (arena.address, overflow.address)
    assert arena.occupied() == 3 * PAGE, "what could not be had as a whole is given back"
    assert heap.allocate(PAGE) == arena.address + 3 * PAGE
    extent = heap.copy_in(b"x" * 2 * PAGE)
    assert (extent.arena, content(overflow, extent)) == (2, b"x" * 2 * PAGE)
    heap.give_back(extent.id, extent.length)
    heap.release(second)
    assert heap.usage().warm == 4 * PAGE


def test_the_second_arena_takes_what_is_too_large_for_the_first(tmp_path):
    with Arena.create(1, PAGE) as arena, Arena.create(2, 9 * PAGE, tmp_path) as overflow:
        assert Heap(arena, overflow).allocate(2 * PAGE) == overflow.address


def test_own_idle_memory_is_given_up_before_that(arena, overflow, monkeypatch):
    heap = Heap(arena, overflow)
    Disk(arena, 6 * PAGE, monkeypatch)
    kept, idle = heap.allocate(PAGE), heap.allocate(2 * PAGE)
    wall = heap.allocate(PAGE)
    heap.release(idle)
    assert heap.allocate(4 * PAGE) == wall + PAGE
    assert kept == arena.address
    assert (arena.occupied(), heap.usage().warm) == (6 * PAGE, 0)


def test_pages_that_are_in_the_way_of_themselves_are_given_up(arena, monkeypatch):
    heap = Heap(arena)
    disk = Disk(arena, 8 * PAGE, monkeypatch)
    heap.release(heap.allocate(6 * PAGE))
    monkeypatch.setattr(
        arena, "reserve", lambda *where: monkeypatch.setattr(arena, "reserve", disk) or full()
    )
    assert heap.allocate(8 * PAGE) == arena.address


def full():
    raise ArenaFull("just now")


def test_when_both_are_full_it_says_why(arena, overflow, monkeypatch):
    heap = Heap(arena, overflow)
    Disk(arena, PAGE, monkeypatch)
    heap.allocate(SIZE)
    with pytest.raises(
        ArenaFull, match=rf"no room for {2 * PAGE} bytes in arena 1: .* is full;.*; no {2 * PAGE} bytes left"
    ):
        heap.copy_in(bytes(2 * PAGE))
    with pytest.raises(ArenaFull):
        heap.allocate(2 * PAGE)
    heap.release(overflow.address)
    heap.trim(SIZE)
    assert heap.usage() == HeapUsage(0, 0, 0)


def test_a_range_that_may_lack_pages_is_never_used(arena, monkeypatch):
    heap = Heap(arena)
    Disk(arena, 4 * PAGE, monkeypatch)
    monkeypatch.setattr(arena, "punch", lambda offset, nbytes: False)
    with pytest.raises(ArenaFull):
        heap.allocate(5 * PAGE)
    monkeypatch.undo()
    assert heap.allocate(PAGE) == arena.address + 5 * PAGE


# ---- publishing


def test_what_was_released_is_published_as_it_lies(heap, arena):
    address = heap.allocate(3 * PAGE - 10)
    put(address, b"abc")
    claim = heap.claim(address, 3 * PAGE - 10)
    heap.release(address)
    extent = heap.settle(claim)
    assert extent == Extent(1, 0, 0, 3 * PAGE - 10, 3 * PAGE)
    assert content(arena, extent)[:3] == b"abc"
    assert heap.usage() == HeapUsage(0, 3 * PAGE, 0)
    assert heap.allocate(3 * PAGE) != address, "published memory is not given out"
    heap.give_back(extent.id, extent.length)
    assert heap.usage() == HeapUsage(3 * PAGE, 0, 3 * PAGE)
    assert heap.allocate(3 * PAGE) == address


def test_what_somebody_still_holds_is_copied(heap, arena):
    address = heap.allocate(PAGE)
    put(address, b"abc" + bytes(PAGE - 3))
    extent = heap.settle(heap.claim(address, PAGE))
    put(address, b"xyz")
    assert extent.block != 0
    assert content(arena, extent)[:3] == b"abc"
    assert heap.usage() == HeapUsage(PAGE, PAGE, 0)
    heap.release(address)
    assert heap.usage() == HeapUsage(0, PAGE, PAGE)


def test_a_view_is_published_where_it_lies(heap, arena):
    address = heap.allocate(2 * PAGE)
    put(address + 100, b"abc")
    claim = heap.claim(address + 100, PAGE)
    heap.release(address)
    extent = heap.settle(claim)
    assert extent == Extent(1, 0, 100, PAGE, 2 * PAGE)
    assert content(arena, extent)[:3] == b"abc"


def test_a_view_of_something_held_copies_only_itself(heap, arena):
    address = heap.allocate(4 * PAGE)
    put(address + PAGE, b"abc")
    extent = heap.settle(heap.claim(address + PAGE, 2 * PAGE))
    assert (extent.offset, extent.length, content(arena, extent)[:3]) == (0, 2 * PAGE, b"abc")


@pytest.mark.parametrize(
    ("offset", "nbytes"),
    [(0, PAGE - 1), (0, 2 * PAGE + 1), (PAGE, PAGE + 1), (-1, PAGE), (2 * PAGE, 0), (SIZE, PAGE)],
)
def test_less_than_half_or_what_is_not_ours_is_not_claimed(heap, offset, nbytes):
    address = heap.allocate(2 * PAGE)
    assert heap.claim(address + offset, nbytes) is None
    heap.release(address)
    assert heap.claim(address, 2 * PAGE) is None


def test_nothing_is_claimed_in_an_empty_heap(heap, arena):
    assert heap.claim(arena.address + 1, 1) is None


def test_two_buffers_of_one_array_lie_in_one_block(heap):
    address = heap.allocate(2 * PAGE)
    claims = [heap.claim(address, PAGE), heap.claim(address + PAGE, PAGE)]
    heap.release(address)
    first, second = (heap.settle(claim) for claim in claims)
    assert first.id == second.id
    assert (first.offset, second.offset) == (0, PAGE)
    assert heap.usage().published == 2 * PAGE


def test_a_claim_given_up_changes_nothing(heap):
    address = heap.allocate(PAGE)
    claim = heap.claim(address, PAGE)
    heap.abandon(claim)
    heap.abandon(claim)
    assert heap.usage() == HeapUsage(PAGE, 0, 0)
    first, second = heap.claim(address, PAGE), heap.claim(address, PAGE)
    heap.release(address)
    heap.abandon(first)
    assert heap.usage().warm == 0, "the other claim is still good"
    heap.abandon(second)
    assert heap.usage() == HeapUsage(0, 0, PAGE)


def test_one_of_two_claims_given_up_leaves_the_block(heap):
    address = heap.allocate(PAGE)
    first, second = heap.claim(address, PAGE), heap.claim(address, PAGE)
    heap.release(address)
    extent = heap.settle(first)
    heap.abandon(second)
    heap.abandon(first)
    assert heap.usage() == HeapUsage(0, PAGE, 0)
    heap.give_back(extent.id, PAGE)


def test_nothing_is_settled_twice(heap):
    claim = heap.claim(heap.allocate(PAGE), PAGE)
    heap.settle(claim)
    with pytest.raises(ValueError, match="settled twice"):
        heap.settle(claim)


def test_a_claim_survives_a_lack_of_room(heap):
    address = heap.allocate(SIZE // 2 + PAGE)
    claim = heap.claim(address, SIZE // 2 + PAGE)
    with pytest.raises(ArenaFull):
        heap.settle(claim)
    heap.release(address)
    assert heap.settle(claim).block == 0


def test_claimed_memory_is_not_cut_short(heap):
    address = heap.allocate(4 * PAGE)
    put(address, b"abc")
    claim = heap.claim(address, 4 * PAGE)
    moved = heap.resize(address, PAGE)
    assert moved != address
    assert ctypes.string_at(moved, 3) == b"abc"
    assert heap.settle(claim) == Extent(1, 0, 0, 4 * PAGE, 4 * PAGE)


@pytest.mark.parametrize(
    "buffer",
    [
        b"0123456789",
        bytearray(b"0123456789"),
        np.frombuffer(b"0123456789", np.uint8),
        pickle.PickleBuffer(b"0123456789"),
    ],
)
def test_memory_from_elsewhere_is_copied_in(heap, arena, buffer):
    extent = heap.copy_in(buffer)
    assert (extent.nbytes, extent.length) == (10, PAGE)
    assert content(arena, extent) == b"0123456789"


def test_what_is_contiguous_in_either_order_is_copied_in(heap, arena):
    values = np.arange(12.0).reshape(3, 4, order="F")
    assert content(arena, heap.copy_in(values)) == values.tobytes("F")
    with pytest.raises(BufferError):
        heap.copy_in(values[:, ::2])
    assert heap.copy_in(b"").nbytes == 0


def test_what_was_not_published_is_not_taken_back(heap):
    extent = heap.copy_in(b"x")
    for block, length in ((BlockId(1, PAGE), PAGE), (BlockId(2, 0), PAGE), (extent.id, 2 * PAGE)):
        with pytest.raises(ValueError, match="not published here"):
            heap.give_back(block, length)
    heap.give_back(extent.id, PAGE)
    with pytest.raises(ValueError, match="not published here"):
        heap.give_back(extent.id, PAGE)


def test_a_block_whose_pages_are_gone_comes_back_cold(heap, arena):
    extent = heap.copy_in(b"x")
    arena.punch(extent.block, extent.length)
    heap.give_back(extent.id, extent.length, warm=False)
    assert heap.usage().warm == 0
    address = heap.allocate(PAGE, zeroed=True)
    assert arena.occupied() == PAGE
    assert ctypes.string_at(address, 1) == b"\0"


# ---- from several sides at once


def test_a_busy_heap_says_so_and_releases_wait(heap):
    address = heap.allocate(2 * PAGE)
    with heap._lock:
        assert heap.allocate(PAGE) == 0
        assert heap.resize(address, PAGE) == 0
        heap.release(address)
        assert address in heap.live
    assert heap.allocate(PAGE) == address, "it is released before more is given out"
    assert heap.usage() == HeapUsage(PAGE, 0, PAGE)


def test_what_others_note_is_released_when_the_heap_is_used(heap):
    noted = []
    heap.add_source(lambda: noted.pop() if noted else 0)
    first, second, third = (heap.allocate(PAGE) for _ in range(3))
    claim = heap.claim(second, PAGE)
    noted += [first]
    assert heap.allocate(PAGE) == first
    noted += [second]
    extent = heap.settle(claim)
    assert extent.block == second - heap.places[0][0]
    noted += [first, third]
    assert heap.usage() == HeapUsage(0, PAGE, 2 * PAGE)
    address = heap.allocate(PAGE)
    noted += [address]
    assert heap.trim(SIZE) == 2 * PAGE * CAN_REVERT
    assert heap.copy_in(b"x").block != extent.block


class Holder:
    """Releases its memory when it is collected, as arrays do; a cycle, so that only a collection can."""

    def __init__(self, heap, address):
        self.heap, self.address, self.itself = heap, address, self

    def __del__(self):
        self.heap.release(self.address)


def test_a_collection_may_start_anywhere(heap):
    threshold = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for number in range(300):
            address = heap.allocate(PAGE * (1 + number % 3))
            if address:
                put(address, bytes([number % 256]) * PAGE)
                Holder(heap, address)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    usage = heap.usage()
    assert (usage.live, usage.warm + heap._parts[0].ranges.cold_bytes) == (0, SIZE)


def test_threads_never_get_the_same_memory(heap):
    wrong = []

    def work(mark):
        for number in range(200):
            address = heap.allocate(PAGE * (1 + number % 3))
            if address:
                put(address, bytes([mark]) * 64)
                if ctypes.string_at(address, 64) != bytes([mark]) * 64:
                    wrong.append(address)
                heap.release(address)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    heap.trim(0)
    assert heap.usage().live == 0


# ---- other processes

FORK = """
import os
import numpy as np
from graphmill.errors import ArenaFull
from graphmill.memory.arena import Arena
from graphmill.memory.heap import Heap
from graphmill.memory.numpy_handler import NumpyHandler

arena = Arena.create(0, 1 << 24)
heap = Heap(arena)
handler = NumpyHandler.create(heap)
handler.switch_on()
held, idle = np.full(100_000, 1.0), np.full(100_000, 2.0)
published = heap.copy_in(held)
del idle
"""


@pytest.mark.skipif(not CAN_REVERT, reason="segments cannot be made private here")
@pytest.mark.usefixtures("needs_handler")
def test_a_task_may_fork(script):
    source = (
        FORK
        + """
child = os.fork()
if not child:
    ok = held.sum() == 100_000
    held[:] = 7
    mine = [np.full(100_000, 8.0) for _ in range(5)]
    grown = np.full(100_000, 9.0)
    grown.resize(200_000, refcheck=False)
    held.resize(300_000, refcheck=False)
    ok = ok and held[:100_000].sum() == 700_000 and heap.claim(held.ctypes.data, held.nbytes) is None
    del mine, grown
    os._exit(not ok)
theirs = [np.full(100_000, 3.0) for _ in range(5)]
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert held.sum() == 100_000
assert all((each == 3).all() for each in theirs)
assert (np.frombuffer(arena.shared, float, 100_000, published.block) == 1).all()
print(handler.take_failure(), heap.usage().published == published.length)
del held, theirs
"""
    )
    assert script(source) == "None True\n"


@pytest.mark.usefixtures("needs_handler")
def test_a_forked_copy_publishes_nothing(script):
    source = (
        FORK
        + """
claim = heap.claim(held.ctypes.data, held.nbytes)
child = os.fork()
if not child:
    refused = 0
    for name, arguments in (
        ("settle", (claim,)),
        ("copy_in", (b"x",)),
        ("give_back", (published.id, published.length)),
        ("trim", (1 << 20,)),
    ):
        try:
            getattr(heap, name)(*arguments)
        except ValueError as error:
            refused += "forked" in str(error)
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
heap.abandon(claim)
"""
    )
    assert script(source) == "4\n"


@pytest.mark.usefixtures("needs_handler")
def test_a_process_may_fork_after_the_arena_was_closed(script):
    source = (
        FORK
        + """
handler.close()
arena.close()
child = os.fork()
if not child:
    held.resize(200_000, refcheck=False)
    os._exit(int(held.sum()) != 100_000)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    assert script(source) == "0\n"


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="nothing can be mounted in its place")
@pytest.mark.usefixtures("needs_handler")
def test_a_full_dev_shm_sends_arrays_to_the_file(script, tmp_path, small_shared_memory):
    source = """
import sys
from pathlib import Path
import numpy as np
from graphmill.memory.arena import Arena
from graphmill.memory.heap import Heap
from graphmill.memory.numpy_handler import NumpyHandler

with Arena.create(0, 1 << 30) as arena, Arena.create(1, 1 << 30, Path(sys.argv[1])) as overflow:
    heap = Heap(arena, overflow)
    handler = NumpyHandler.create(heap)
    with handler:
        arrays = [np.full(50_000, float(number)) for number in range(10)]
    assert all((array == number).all() for number, array in enumerate(arrays))
    where = [heap.live[array.ctypes.data].part.arena.number for array in arrays]
    extents = [heap.copy_in(array).arena for array in arrays]
    print(sorted(set(where)), sorted(set(extents)), arena.occupied() <= 1 << 20)
    del arrays
    handler.close()
"""
    assert script(source, tmp_path, before=small_shared_memory) == "[0, 1] [1] True\n"


# ---- everything in any order: nothing ever changes under anybody


class Machine(RuleBasedStateMachine):
    """Fills all that it gets with a mark of its own, and looks at all marks after each step."""

    def __init__(self):
        super().__init__()
        self.arena = Arena.create(1, SIZE)
        self.heap = Heap(self.arena)
        self.marks = 0
        self.live, self.claims, self.blocks = {}, [], []

    def teardown(self):
        self.arena.close()
        self.arena.unlink()

    def mark(self, nbytes):
        self.marks += 1
        return bytes([self.marks % 255 + 1]) * nbytes

    @rule(nbytes=st.integers(1, 8 * PAGE), zeroed=st.booleans())
    def allocate(self, nbytes, zeroed):
        try:
            address = self.heap.allocate(nbytes, zeroed)
        except ArenaFull:
            return
        if zeroed:
            assert ctypes.string_at(address, nbytes) == bytes(nbytes)
        self.fill(address, nbytes)

    def fill(self, address, nbytes):
        mark = self.mark(nbytes)
        put(address, mark)
        self.live[address] = mark

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data):
        address = data.draw(st.sampled_from(sorted(self.live)))
        self.heap.release(address)
        del self.live[address]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), nbytes=st.integers(1, 8 * PAGE))
    def resize(self, data, nbytes):
        address = data.draw(st.sampled_from(sorted(self.live)))
        try:
            moved = self.heap.resize(address, nbytes)
        except ArenaFull:
            return
        kept = self.live.pop(address)[:nbytes]
        assert ctypes.string_at(moved, len(kept)) == kept
        self.fill(moved, nbytes)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), part=st.floats(0, 1), keep=st.booleans())
    def claim(self, data, part, keep):
        address = data.draw(st.sampled_from(sorted(self.live)))
        mark = self.live[address]
        offset = int(len(mark) * part)
        claim = self.heap.claim(address + offset, len(mark) - offset)
        assert (claim is None) == (2 * (len(mark) - offset) < len(mark) or offset == len(mark))
        if claim is not None:
            self.claims.append((claim, mark[offset:]))
        if not keep:
            self.heap.release(address)
            del self.live[address]

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), settle=st.booleans())
    def finish(self, data, settle):
        claim, mark = self.claims.pop(data.draw(st.integers(0, len(self.claims) - 1)))
        held = claim.allocation.address in self.heap.live
        now = ctypes.string_at(claim.allocation.address + claim.offset, claim.nbytes)
        if settle:
            try:
                self.blocks.append((self.heap.settle(claim), now if held else mark))
            except ArenaFull:
                self.heap.abandon(claim)
        else:
            self.heap.abandon(claim)

    @rule(nbytes=st.integers(0, 8 * PAGE))
    def copy_in(self, nbytes):
        mark = self.mark(nbytes)
        try:
            self.blocks.append((self.heap.copy_in(mark), mark))
        except ArenaFull:
            return

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), punch=st.booleans())
    def give_back(self, data, punch):
        extent, _ = data.draw(st.sampled_from(self.blocks))
        shared = [(claim, mark) for claim, mark in self.claims if claim.allocation.published]
        if any(claim.allocation.offset == extent.block for claim, _ in shared):
            return  # the codec settles all claims of a result before it sends it
        self.blocks = [(each, mark) for each, mark in self.blocks if each.id != extent.id]
        if punch:
            self.arena.punch(extent.block, extent.length)
        self.heap.give_back(extent.id, extent.length, warm=not punch)

    @rule(nbytes=st.integers(0, SIZE))
    def trim(self, nbytes):
        self.heap.trim(nbytes)

    @invariant()
    def nothing_changed(self):
        for address, mark in self.live.items():
            assert ctypes.string_at(address, len(mark)) == mark
        for extent, mark in self.blocks:
            assert content(self.arena, extent) == mark

    @invariant()
    def every_page_is_accounted_for(self):
        usage = self.heap.usage()
        zones = self.heap._parts[0].ranges
        taken = sum(zones._long._taken.values()) + sum(zones._short._taken.values())
        assert taken + usage.warm + self.heap._parts[0].ranges.cold_bytes == SIZE
        assert usage.published == sum({each.id: each.length for each, _ in self.blocks}.values())
        assert usage.live == sum(each.length for each in self.heap.live.values())
        assert self.arena.occupied() == taken + usage.warm


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestAnyOrder = Machine.TestCase
