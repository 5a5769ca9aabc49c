"""The free space of a segment, against a model that looks at every page."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmill.errors import ArenaFull
from graphmill.memory.ranges import Ranges, Zones, length_class

PAGE = 16
PAGES = 40


class PageByPage:
    """What a segment looks like: for each page "cold", "warm" or "taken"."""

    def __init__(self, pages):
        self.pages = ["cold"] * pages

    def runs(self, kinds):
        """Every longest stretch of pages of these kinds, as (start, length) in pages."""
        found, start = [], None
        for at, page in enumerate([*self.pages, "end"]):
            if page in kinds:
                start = at if start is None else start
            elif start is not None:
                found.append((start, at - start))
                start = None
        return found

    def expect(self, pages):
        """All right places for so many pages."""
        for kinds in ({"warm"}, {"cold"}, {"warm", "cold"}):
            fitting = [run for run in self.runs(kinds) if run[1] >= pages]
            shortest = min((length for _, length in fitting), default=None)
            starts = {start for start, length in fitting if length == shortest}
            if starts and kinds == {"cold"}:
                return {self.with_warm_before(start) for start in starts}
            if starts and len(kinds) == 2:
                return {min(starts)}
            if starts:
                return starts
        return set()

    def with_warm_before(self, start):
        while start and self.pages[start - 1] == "warm":
            start -= 1
        return start

    def mark(self, offset, length, kind):
        start, count = offset // PAGE, length // PAGE
        before = self.pages[start : start + count]
        self.pages[start : start + count] = [kind] * count
        return before


steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), st.integers(0, PAGES * PAGE)),
        st.tuples(st.just("free"), st.integers(0, 1000), st.booleans()),
        st.tuples(st.just("shrink"), st.integers(0, 1000), st.integers(0, PAGE)),
        st.tuples(st.just("trim"), st.integers(0, PAGES * PAGE), st.booleans()),
    ),
    max_size=60,
)


class Driver:
    """Does every step to the allocator and to the model, and compares."""

    def __init__(self):
        self.ranges = Ranges(PAGES * PAGE + 3, PAGE)
        self.model = PageByPage(PAGES)
        self.taken = []

    def allocate(self, nbytes):
        pages = max(1, -(-nbytes // PAGE))
        places = self.model.expect(pages)
        if not places:
            with pytest.raises(ArenaFull):
                self.ranges.allocate(nbytes)
            return
        found = self.ranges.allocate(nbytes)
        assert found.length == pages * PAGE
        assert found.offset // PAGE in places
        before = self.model.mark(found.offset, found.length, "taken")
        assert "taken" not in before
        assert found.warm == ("cold" not in before)
        assert found.clean == ("warm" not in before)
        self.taken.append((found.offset, found.length))

    def free(self, which, warm):
        if self.taken:
            self.give(*self.taken.pop(which % len(self.taken)), warm)

    def shrink(self, which, nbytes):
        """Free all but the first page of something."""
        if self.taken:
            offset, length = self.taken[which % len(self.taken)]
            if length > PAGE:
                assert self.ranges.shrink(offset, length, nbytes) == PAGE
                self.taken[which % len(self.taken)] = (offset, PAGE)
                self.model.mark(offset + PAGE, length - PAGE, "warm")

    def give(self, offset, length, warm):
        self.ranges.free(offset, length, warm)
        self.model.mark(offset, length, "warm" if warm else "cold")
        with pytest.raises(ValueError, match="not taken"):
            self.ranges.free(offset, length, warm)

    def trim(self, nbytes, punched):
        warm = self.ranges.warm_bytes
        taken = self.ranges.trim(nbytes)
        assert sum(each.length for each in taken) == min(warm, -(-nbytes // PAGE) * PAGE)
        for each in taken:
            assert set(self.model.mark(each.offset, each.length, "taken")) == {"warm"}
        for each in taken:
            self.give(each.offset, each.length, warm=not punched)

    def check(self):
        """The pieces are the longest stretches of one kind, and the index knows each of them."""
        for kind, pieces in (("warm", self.ranges._warm), ("cold", self.ranges._cold)):
            runs = {start * PAGE: length * PAGE for start, length in self.model.runs({kind})}
            assert pieces.starts == runs
            assert pieces.ends == {start + length: start for start, length in runs.items()}
            assert pieces.nbytes == sum(runs.values())
            lengths = sorted(set(runs.values()))
            assert sorted(length for lists in pieces._classes.values() for length in lists) == lengths
            assert set(pieces._buckets) == set(lengths)
            assert all(pieces._classes.values())
            assert pieces._filled == sum(1 << each for each in pieces._classes)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_agrees_with_a_model_that_looks_at_every_page(steps):
    driver = Driver()
    for name, *arguments in steps:
        getattr(driver, name)(*arguments)
        driver.check()
    while driver.taken:
        driver.free(0, warm=True)
    driver.check()
    assert driver.ranges.warm_bytes + driver.ranges.cold_bytes == PAGES * PAGE


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_classes_are_in_the_order_of_lengths(one, other):
    if one <= other:
        assert length_class(one) <= length_class(other)


def test_warm_memory_is_used_first_and_the_smallest_that_fits():
    ranges = Ranges(100 * PAGE, PAGE)
    taken = [ranges.allocate(pages * PAGE) for pages in (5, 1, 3, 1, 4, 1)]
    for each in (taken[0], taken[2], taken[4]):
        ranges.free(each.offset, each.length)
    assert ranges.allocate(3 * PAGE - 1) == (taken[2].offset, 3 * PAGE, ())
    assert ranges.allocate(3 * PAGE) == (taken[4].offset, 3 * PAGE, ())
    assert ranges.warm_bytes == 6 * PAGE


def test_what_grows_takes_its_old_pages_along():
    ranges = Ranges(100 * PAGE, PAGE)
    first = ranges.allocate(10 * PAGE)
    ranges.free(first.offset, first.length)
    assert ranges.allocate(12 * PAGE) == (0, 12 * PAGE, ((10 * PAGE, 2 * PAGE),))
    assert ranges.warm_bytes == 0


def test_pages_given_back_are_cold_and_read_as_zeros():
    ranges = Ranges(10 * PAGE, PAGE)
    first = ranges.allocate(10 * PAGE)
    ranges.free(first.offset, first.length)
    (trimmed,) = ranges.trim(2 * PAGE + 1)
    assert trimmed == (7 * PAGE, 3 * PAGE, ())
    ranges.free(trimmed.offset, trimmed.length, warm=False)
    assert (ranges.warm_bytes, ranges.cold_bytes) == (7 * PAGE, 3 * PAGE)
    assert ranges.allocate(8 * PAGE) == (0, 8 * PAGE, ((7 * PAGE, PAGE),))
    assert ranges.allocate(PAGE) == (8 * PAGE, PAGE, ((8 * PAGE, PAGE),))


@pytest.mark.parametrize(
    ("offset", "length"), [(-PAGE, PAGE), (0, 0), (0, PAGE), (PAGE, 3 * PAGE), (0, 5 * PAGE)]
)
def test_what_was_not_taken_is_not_freed(offset, length):
    ranges = Ranges(8 * PAGE, PAGE)
    ranges.allocate(4 * PAGE)
    with pytest.raises(ValueError, match="not taken"):
        ranges.free(offset, length)
    with pytest.raises(ValueError, match="not taken"):
        ranges.shrink(offset, length, 1)


def test_nothing_grows_by_shrinking():
    ranges = Ranges(8 * PAGE, PAGE)
    ranges.allocate(4 * PAGE)
    with pytest.raises(ValueError, match="more than the"):
        ranges.shrink(0, 4 * PAGE, 4 * PAGE + 1)
    assert ranges.shrink(0, 4 * PAGE, 3 * PAGE + 1) == 4 * PAGE


def test_a_segment_shorter_than_a_page_has_no_room():
    with pytest.raises(ArenaFull):
        Ranges(PAGE - 1, PAGE).allocate(1)


def test_long_stretches_start_where_huge_pages_do():
    huge = 8 * PAGE
    ranges = Ranges(100 * PAGE, PAGE, huge)
    small = ranges.allocate(PAGE)
    first, second = ranges.allocate(huge), ranges.allocate(2 * huge + PAGE)
    assert (first.offset, second.offset) == (huge, 2 * huge)
    assert first.clean
    assert second.clean
    assert ranges.allocate(7 * PAGE).offset == small.length  # what was left free before it
    assert ranges.cold_bytes == (100 - 1 - 8 - 17 - 7) * PAGE


def test_long_stretches_start_anywhere_where_there_is_no_other_room():
    huge = 8 * PAGE
    ranges = Ranges(12 * PAGE, PAGE, huge)
    ranges.allocate(PAGE)
    assert ranges.allocate(10 * PAGE) == (PAGE, 10 * PAGE, ((PAGE, 10 * PAGE),))


def test_used_pages_go_before_huge_ones():
    huge = 8 * PAGE
    ranges = Ranges(100 * PAGE, PAGE, huge)
    first = ranges.allocate(9 * PAGE)
    ranges.free(first.offset, first.length)
    assert ranges.allocate(12 * PAGE) == (0, 12 * PAGE, ((9 * PAGE, 3 * PAGE),))


HUGE = 4 * PAGE
#: As much as a segment must have for two zones; those for short stretches get a quarter of it.
SIZE = 64 * HUGE
SHORT = SIZE // 4


@settings(max_examples=300, deadline=None)
@given(steps)
def test_in_two_zones_no_page_is_given_out_twice_or_lost(steps):
    zones, taken, pages = Zones(SIZE + 3, PAGE, HUGE), [], {}

    def mark(found, what):
        for page in range(found[0], found[0] + found[1], PAGE):
            assert (pages.get(page) == "taken") != (what == "taken")
            pages[page] = what

    for name, first, *more in steps:
        if name == "allocate":
            try:
                found = zones.allocate(first)
            except ArenaFull:
                continue
            assert found.length >= max(first, 1)
            cold = sum(length for _, length in found.cold)
            stretch = range(found.offset, found.offset + found.length, PAGE)
            assert cold == sum(PAGE for page in stretch if pages.get(page, "cold") == "cold")
            mark(found[:2], "taken")
            taken.append(found[:2])
        elif name == "trim":
            for each in zones.trim(first):
                zones.free(each.offset, each.length, warm=not more[0])
                pages.update(
                    (each.offset + at, "cold" if more[0] else "warm") for at in range(0, each.length, PAGE)
                )
        elif name == "free" and taken:
            found = taken.pop(first % len(taken))
            zones.free(*found, warm=more[0])
            mark(found, "warm" if more[0] else "cold")
        elif name == "shrink" and taken:
            offset, length = taken[first % len(taken)]
            left = zones.shrink(offset, length, more[0])
            taken[first % len(taken)] = (offset, left)
            if left < length:
                mark((offset + left, length - left), "warm")
    in_use = sum(length for _, length in taken)
    assert zones.warm_bytes == PAGE * sum(what == "warm" for what in pages.values())
    assert zones.cold_bytes == SIZE - in_use - zones.warm_bytes


def test_a_short_stretch_does_not_cut_what_a_long_one_leaves():
    zones = Zones(SIZE, PAGE, HUGE)
    block = zones.allocate(10 * HUGE)
    zones.free(block.offset, block.length)
    result = zones.allocate(HUGE - 1)
    assert zones.allocate(10 * HUGE) == (block.offset, block.length, ())
    assert result.offset >= SIZE - SHORT


def test_a_zone_that_is_full_goes_on_in_the_other():
    zones = Zones(SIZE, PAGE, HUGE)
    long = [zones.allocate(SIZE - SHORT), zones.allocate(SHORT)]
    assert sum(each.length for each in long) == SIZE
    with pytest.raises(ArenaFull):
        zones.allocate(1)
    zones.free(long[0].offset, long[0].length)
    assert zones.allocate(1).offset < SIZE - SHORT
    assert zones.allocate(HUGE).warm


def test_a_small_segment_has_one_zone():
    zones = Zones(SIZE - PAGE, PAGE, HUGE)
    assert zones.allocate(SIZE - PAGE).length == SIZE - PAGE


def test_little_is_taken_from_short_pieces_so_that_long_ones_stay_whole():
    ranges = Ranges(100 * PAGE, PAGE)
    taken = [ranges.allocate(pages * PAGE) for pages in (20, 1, 5, 1, 30, 1)]
    for each in taken[::2]:
        ranges.free(each.offset, each.length)
    assert [each.length for each in ranges.trim(2 * PAGE)] == [2 * PAGE]
    assert ranges.allocate(30 * PAGE) == (taken[4].offset, 30 * PAGE, ())
    assert ranges.allocate(20 * PAGE) == (taken[0].offset, 20 * PAGE, ())


def test_much_is_taken_in_long_pieces():
    ranges = Ranges(100 * PAGE, PAGE)
    taken = [ranges.allocate(pages * PAGE) for pages in (20, 1, 5, 1, 30, 1)]
    for each in taken[::2]:
        ranges.free(each.offset, each.length)
    assert [each.length for each in ranges.trim(53 * PAGE)] == [30 * PAGE, 20 * PAGE, 3 * PAGE]


def test_of_two_zones_little_is_taken_from_that_of_short_stretches():
    zones = Zones(SIZE, PAGE, HUGE)
    taken = [zones.allocate(10 * HUGE), zones.allocate(2 * PAGE)]
    for each in taken:
        zones.free(each.offset, each.length)
    assert [each.offset >= SIZE - SHORT for each in zones.trim(PAGE)] == [True]
    assert sum(each.length for each in zones.trim(10 * HUGE)) == 10 * HUGE
    assert zones.warm_bytes == PAGE
