"""Which pages a process has changed."""

import mmap
import os

import numpy as np
import pytest

from graphmill.memory import pagemap
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.mapping import revert
from graphmill.memory.pagemap import PageMap, runs

pytestmark = pytest.mark.skipif(
    not os.access("/proc/self/pagemap", os.R_OK), reason="the kernel does not tell"
)


@pytest.fixture
def pages():
    pages = PageMap()
    yield pages
    pages.close()
    pages.close()
    assert pages.changed(0, PAGE) is None


@pytest.fixture(params=["shared memory", "file"])
def arena(request, tmp_path):
    with Arena.create(0, 16 * PAGE, None if request.param == "shared memory" else tmp_path) as arena:
        yield arena


def test_only_changed_pages_are_found(arena, pages):
    arena.shared[: 16 * PAGE] = bytes([1]) * 16 * PAGE
    start = arena.private_address
    assert pages.changed(start, 16 * PAGE) == []
    assert sum(arena.private[: 16 * PAGE]) == 16 * PAGE
    assert pages.changed(start, 16 * PAGE) == [], "reading changes nothing"
    for at in (3, 4, 7, 15):
        arena.private[at * PAGE + 5] = 2
    assert pages.changed(start, 16 * PAGE) == [(3, 5), (7, 8), (15, 16)]
    assert pages.changed(start + 4 * PAGE, 4 * PAGE) == [(0, 1), (3, 4)]
    revert(arena.private, 4 * PAGE, PAGE)
    assert pages.changed(start, 16 * PAGE) == [(3, 4), (7, 8), (15, 16)]


def test_a_part_of_a_page_counts_as_the_page(arena, pages):
    arena.private[PAGE - 1] = 1
    start = arena.private_address
    assert pages.changed(start, 1) == [(0, 1)]
    assert pages.changed(start + 10, PAGE) == [(0, 1)]
    assert pages.changed(start + PAGE, 2 * PAGE) == []
    assert pages.changed(start + PAGE, 0) == []


def test_a_write_of_what_was_there_already_is_a_change(arena, pages):
    arena.private[0] = arena.private[0]
    assert pages.changed(arena.private_address, PAGE) == [(0, 1)]


def test_a_file_that_cannot_be_opened_tells_nothing(monkeypatch, arena):
    def fail(*arguments):
        raise PermissionError

    pages = PageMap()
    monkeypatch.setattr(os, "open", fail)
    assert pages.changed(arena.private_address, PAGE) is None


@pytest.mark.parametrize("answer", [b"", bytes(8)])
def test_a_file_that_does_not_tell_the_truth_is_not_asked(monkeypatch, arena, answer):
    pages = PageMap()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda *arguments: answer)
        assert pages.changed(arena.private_address, PAGE) is None
    assert pages.changed(arena.private_address, PAGE) is None


def test_a_read_that_fails_tells_nothing(monkeypatch, arena, pages):
    def fail(*arguments):
        raise OSError

    assert pages.changed(arena.private_address, PAGE) == []
    monkeypatch.setattr(os, "pread", fail)
    assert pages.changed(arena.private_address, PAGE) is None


def test_a_forked_process_looks_at_itself(script):
    source = """
import os
from graphmill.memory.arena import Arena
from graphmill.memory.pagemap import PageMap

with Arena.create(0, 1 << 20) as arena:
    pages, start = PageMap(), arena.private_address
    assert pages.changed(start, 1) == []
    child = os.fork()
    if not child:
        arena.private[0] = 1
        os._exit(pages.changed(start, 1) != [(0, 1)])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pages.changed(start, 1))
    pages.close()
"""
    assert script(source) == "0 []\n"


@pytest.mark.parametrize(
    ("state", "copied"),
    [(0b000, False), (0b100, True), (0b101, False), (0b010, True), (0b011, False)],
)
def test_how_the_kernels_numbers_are_read(monkeypatch, arena, pages, state, copied):
    assert pages.changed(arena.private_address, PAGE) == []
    entry = np.uint64(state << 61 | 12345).tobytes()
    monkeypatch.setattr(os, "pread", lambda *arguments: entry)
    assert pages.changed(arena.private_address, PAGE) == ([(0, 1)] if copied else [])


@pytest.mark.parametrize(
    ("flags", "found"),
    [([0, 0], []), ([1, 1], [(0, 2)]), ([1, 0, 1, 1], [(0, 1), (2, 4)]), ([0, 1, 0], [(1, 2)]), ([], [])],
)
def test_runs(flags, found):
    assert runs(np.array(flags, bool)) == found


def test_pages_are_as_long_as_the_systems():
    assert pagemap.PAGE == mmap.PAGESIZE
