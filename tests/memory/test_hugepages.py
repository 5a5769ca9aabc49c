"""Pages that come 2 MB at a time: where they are made, and that everything else is as with small ones."""

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from graphmill.memory import hugepages
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import Extent
from graphmill.memory.hugepages import HugePages
from graphmill.memory.lease import Reader
from graphmill.memory.mapping import CAN_REVERT, HUGE_PAGE

SIZE = 8 * HUGE_PAGE

pytestmark = pytest.mark.skipif(not CAN_REVERT, reason="huge pages of shared memory are Linux's")


@pytest.fixture
def arena():
    with Arena.create(3, SIZE) as arena:
        yield arena


def huge_bytes(address):
    """Tell how much of the mapping at an address the system has put there as huge pages."""
    smaps = Path("/proc/self/smaps").read_text()
    start = next(
        found
        for found in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) .*$", smaps, re.MULTILINE)
        if int(found[1], 16) <= address < int(found[2], 16)
    )
    return int(re.search(r"ShmemPmdMapped:\s+(\d+) kB", smaps[start.start() :])[1]) * 1024


def reserve(arena, offset, nbytes):
    """Reserve a range, or skip the test where the system has no huge pages for it."""
    arena.reserve(offset, nbytes)
    if not arena._huge.usable:
        pytest.skip("this system makes no huge pages of shared memory")


def test_whole_huge_pages_of_a_range_are_put_in_place_at_once(arena):
    offset, nbytes = PAGE, 5 * HUGE_PAGE
    reserve(arena, offset, nbytes)
    assert arena.occupied() == nbytes
    if arena._huge._left_out:
        pytest.skip("free memory is in small pieces")
    arena.shared[offset : offset + nbytes] = b"1" * nbytes
    assert huge_bytes(arena.address + HUGE_PAGE) == 4 * HUGE_PAGE
    assert arena.occupied() == nbytes


def test_mappings_are_aligned_as_huge_pages_are(arena):
    assert arena.address % HUGE_PAGE == arena.private_address % HUGE_PAGE == 0


def test_changes_within_a_huge_page_stay_in_this_process_and_can_be_told(arena):
    reserve(arena, 0, 2 * HUGE_PAGE)
    arena.shared[:] = b"1" * SIZE
    reader = Reader({3: arena})
    extent = Extent(3, 0, 0, 2 * HUGE_PAGE, 2 * HUGE_PAGE)
    view = reader.view(extent)
    assert view.sum() == 2 * HUGE_PAGE * ord("1")
    assert reader.is_clean(extent)
    view[5 * PAGE] = 0
    assert not reader.is_clean(extent)
    assert arena.shared[5 * PAGE] == ord("1")
    assert np.count_nonzero(view == 0) == 1
    del view
    reader.drop_dirty(extent.id)
    assert reader.view(extent).all()
    reader.close()


def test_a_part_of_a_huge_page_goes_back_to_the_system(arena):
    reserve(arena, 0, 4 * HUGE_PAGE)
    arena.shared[:] = b"1" * SIZE
    occupied = arena.occupied()
    assert arena.punch(HUGE_PAGE // 2, HUGE_PAGE)
    assert arena.occupied() == occupied - HUGE_PAGE
    assert set(arena.shared[HUGE_PAGE // 2 : HUGE_PAGE // 2 + HUGE_PAGE]) == {0}
    assert set(arena.shared[: HUGE_PAGE // 2]) == {ord("1")}


def test_files_have_small_pages(tmp_path):
    with Arena.create(3, SIZE, tmp_path) as arena:
        assert arena._huge is None
        arena.reserve(0, SIZE)
        assert arena.occupied() >= SIZE


@pytest.mark.parametrize(
    ("code", "usable"),
    [(errno.EINVAL, False), (errno.ENOMEM, True), (errno.EAGAIN, True), (errno.ENOSPC, True)],
)
def test_where_there_are_none_small_pages_are_used(arena, monkeypatch, code, usable):
    asked = []

    def refuse(*arguments):
        asked.append(arguments)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(hugepages, "advise", refuse)
    for at in range(2):
        arena.reserve(at * 2 * HUGE_PAGE, 2 * HUGE_PAGE)
    assert arena.occupied() == 4 * HUGE_PAGE
    assert arena._huge.usable == usable
    assert len(asked) == 1  # not again soon


def test_they_are_tried_again_after_a_while(arena, monkeypatch):
    huge = HugePages()
    times = iter(range(100))
    monkeypatch.setattr(hugepages.time, "thread_time", lambda: next(times))
    assert huge.fill(arena.descriptor, arena.shared, 0, HUGE_PAGE) == (0, HUGE_PAGE) or not huge.usable
    if not huge.usable:
        pytest.skip("this system makes no huge pages of shared memory")
    pauses = [
        huge.fill(arena.descriptor, arena.shared, HUGE_PAGE, HUGE_PAGE) for _ in range(hugepages._PAUSE)
    ]
    assert set(pauses) == {(HUGE_PAGE, HUGE_PAGE)}
    assert huge.fill(arena.descriptor, arena.shared, HUGE_PAGE, HUGE_PAGE) == (HUGE_PAGE, 2 * HUGE_PAGE)
