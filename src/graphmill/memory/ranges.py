"""Which parts of a segment are free. Pure: offsets and lengths, no memory.

Free space is told apart by what it costs. A *warm* page is there and can be written at once; a *cold*
one was never touched, or went back to the system, and has to be reserved before it is written. A
*piece* is a free stretch of one kind, as long as it can be: neighbours of one kind are merged at once.

An allocation takes the smallest warm piece that is long enough. Where there is none it takes the
smallest such cold piece, and with it the warm piece on its left, if there is one: memory that grows a
little from one allocation to the next then uses its old pages again instead of leaving them behind.
Otherwise a long stretch starts where a huge page does, since the system can fill only whole ones at
once. Only where all of that fails are pieces of both kinds joined.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

from graphmill.errors import ArenaFull


class Range(NamedTuple):
    """A stretch of a segment, taken out of the free space. Neither warm nor clean: some pages are there."""

    #: Where it starts, in bytes.
    offset: int
    #: Its length, in bytes.
    length: int
    #: The parts of it where no page is there: where each starts, and its length, in bytes.
    cold: tuple[tuple[int, int], ...] = ()

    @property
    def warm(self) -> bool:
        """Whether every page is there: it may be written at once."""
        return not self.cold

    @property
    def clean(self) -> bool:
        """Whether no page is there: once reserved, it reads as zeros."""
        return self.cold == ((self.offset, self.length),)


class Pieces:
    """The free pieces of one kind, found by where they start, where they end, and by length.

    Notes
    -----
    Lengths are kept in classes, sixteen to each power of two, and each class is a short sorted list of
    the lengths that occur. So nothing moves or walks through a list of all pieces, however many there are.
    """

    __slots__ = ("_buckets", "_classes", "_filled", "ends", "nbytes", "starts")

    def __init__(self) -> None:
        #: {where a piece starts: its length}
        self.starts: dict[int, int] = {}
        #: {where a piece ends: where it starts}
        self.ends: dict[int, int] = {}
        #: All lengths together, in bytes.
        self.nbytes = 0
        #: {length: where pieces of that length start, the last freed last}
        self._buckets: dict[int, dict[int, None]] = {}
        #: {class: the lengths in it that occur, sorted}
        self._classes: dict[int, list[int]] = {}
        #: One bit for each class that is not empty.
        self._filled = 0

    def add(self, offset: int, length: int) -> None:
        """Add a piece whose neighbours are not free, or of the other kind."""
        self.starts[offset] = length
        self.ends[offset + length] = offset
        self.nbytes += length
        bucket = self._buckets.get(length)
        if bucket is not None:
            bucket[offset] = None
            return
        self._buckets[length] = {offset: None}
        which = length_class(length)
        lengths = self._classes.get(which)
        if lengths is None:
            self._classes[which] = [length]
            self._filled |= 1 << which
        else:
            insort(lengths, length)

    def remove(self, offset: int) -> int:
        """Take a piece out; return its length."""
        length = self.starts.pop(offset)
        del self.ends[offset + length]
        self.nbytes -= length
        bucket = self._buckets[length]
        del bucket[offset]
        if bucket:
            return length
        del self._buckets[length]
        which = length_class(length)
        lengths = self._classes[which]
        del lengths[bisect_left(lengths, length)]
        if not lengths:
            del self._classes[which]
            self._filled ^= 1 << which
        return length

    def best(self, length: int) -> int | None:
        """Find the smallest piece that is long enough, of several the last freed; return its start."""
        bucket = self._buckets.get(length)
        if bucket is None:
            fitting = self._next_length(length)
            if fitting is None:
                return None
            bucket = self._buckets[fitting]
        return next(reversed(bucket))

    def largest(self) -> int | None:
        """Find the longest piece; return where it starts."""
        if not self._filled:
            return None
        return next(reversed(self._buckets[self._classes[self._filled.bit_length() - 1][-1]]))

    def smallest(self) -> int | None:
        """Find the shortest piece; return where it starts."""
        if not self._filled:
            return None
        which = (self._filled & -self._filled).bit_length() - 1
        return next(reversed(self._buckets[self._classes[which][0]]))

    def _next_length(self, length: int) -> int | None:
        """Find the smallest length that occurs and is not below this one."""
        which = length_class(length)
        lengths = self._classes.get(which)
        if lengths is not None and lengths[-1] >= length:
            return lengths[bisect_left(lengths, length)]
        higher = self._filled >> which + 1
        if not higher:
            return None
        return self._classes[which + (higher & -higher).bit_length()][0]


def length_class(length: int) -> int:
    """Number the class of a length: its highest five bits, and how far they stand to the left."""
    shift = length.bit_length() - 5
    if shift < 0:
        return length
    return (shift + 1 << 4) + (length >> shift)


class Ranges:
    """The free space of one segment.

    Parameters
    ----------
    size : int
        Length of the segment, in bytes; what is left of the last page is not used.
    page : int
        Offsets and lengths are multiples of it, in bytes.
    huge : int, optional
        Length of a huge page, in bytes: stretches at least as long start at a multiple of it, where only
        cold pages are taken and there is room.

    Notes
    -----
    Not safe for use by several threads at once, nor from within itself.
    """

    __slots__ = ("_cold", "_taken", "_warm", "huge", "page", "size")

    def __init__(self, size: int, page: int = 4096, huge: int | None = None) -> None:
        #: Length of one page, in bytes.
        self.page = page
        #: Length of a huge page, in bytes.
        self.huge = huge
        #: Length of the whole pages, in bytes.
        self.size = size - size % page
        self._warm = Pieces()
        self._cold = Pieces()
        #: {where a taken stretch starts: its length}, so that nothing can be freed twice.
        self._taken: dict[int, int] = {}
        if self.size:
            self._cold.add(0, self.size)

    @property
    def warm_bytes(self) -> int:
        """Free bytes whose pages are there."""
        return self._warm.nbytes

    @property
    def cold_bytes(self) -> int:
        """Free bytes whose pages are not there."""
        return self._cold.nbytes

    def allocate(self, nbytes: int) -> Range:
        """Take a stretch of at least so many bytes, a whole number of pages and at least one.

        Parameters
        ----------
        nbytes : int
            The bytes that are needed.

        Returns
        -------
        Range
            What was taken. Unless it is warm it has to be reserved before it is written.

        Raises
        ------
        ArenaFull
            No free stretch is long enough.
        """
        length = self._whole_pages(nbytes)
        warm = self._warm
        offset = warm.best(length)
        if offset is not None:
            found = warm.remove(offset)
            if found > length:
                warm.add(offset + length, found - length)
            self._taken[offset] = length
            return Range(offset, length)
        cold = self._cold
        if self.huge is not None and length >= self.huge:
            offset = cold.best(length + self.huge - self.page)
            if offset is not None and offset not in warm.ends:
                return self._carve(self._cut(offset), length)
        offset = cold.best(length)
        if offset is not None:
            return self._carve(warm.ends.get(offset, offset), length)
        return self._carve(self._joined(length), length)

    def _cut(self, offset: int) -> int:
        """Cut a cold piece where its first huge page starts; return where that is."""
        assert self.huge is not None
        start = -(-offset // self.huge) * self.huge
        if start > offset:
            found = self._cold.remove(offset)
            self._cold.add(offset, start - offset)
            self._cold.add(start, offset + found - start)
        return start

    def free(self, offset: int, length: int, warm: bool = True) -> None:
        """Take a stretch back.

        Parameters
        ----------
        offset, length : int
            What was taken, in bytes.
        warm : bool
            Its pages are there; False if they went back to the system, so that it reads as zeros.

        Raises
        ------
        ValueError
            No such stretch is taken.
        """
        self._check(offset, length)
        del self._taken[offset]
        self._merge(offset, length, self._warm if warm else self._cold)

    def shrink(self, offset: int, length: int, nbytes: int) -> int:
        """Keep the first part of a stretch, as much as so many bytes need, and free the rest as warm.

        Returns
        -------
        int
            The length that is left, in bytes.

        Raises
        ------
        ValueError
            No such stretch is taken, or it is not as long as that.
        """
        self._check(offset, length)
        kept = self._whole_pages(nbytes)
        if kept > length:
            raise ValueError(f"{nbytes} bytes are more than the {length} taken at {offset}")
        if kept < length:
            self._taken[offset] = kept
            self._merge(offset + kept, length - kept, self._warm)
        return kept

    def trim(self, nbytes: int) -> list[Range]:
        """Take out warm pages that are to go back to the system.

        The longest pieces that go as a whole are first, then the shortest: whoever takes a little from a long
        piece leaves one that is just too short for what lay there before.

        Parameters
        ----------
        nbytes : int
            How much is to go back; where less is warm, all of it is taken.

        Returns
        -------
        list of Range
            What was taken. Each is to be freed again: as cold when its pages are gone, else as warm.
        """
        taken: list[Range] = []
        warm = self._warm
        while nbytes > 0 and (offset := warm.largest()) is not None:
            if warm.starts[offset] > self._whole_pages(nbytes):
                offset = warm.smallest()
                assert offset is not None  # as there is a largest
            length = warm.remove(offset)
            kept = max(0, length - self._whole_pages(nbytes))
            if kept:
                warm.add(offset, kept)
            self._taken[offset + kept] = length - kept
            taken.append(Range(offset + kept, length - kept))
            nbytes -= length - kept
        return taken

    def _whole_pages(self, nbytes: int) -> int:
        page = self.page
        return (nbytes + page - 1) // page * page or page

    def _check(self, offset: int, length: int) -> None:
        if self._taken.get(offset) != length:
            raise ValueError(f"not taken: {length} bytes at {offset}")

    def _merge(self, offset: int, length: int, pieces: Pieces) -> None:
        """Make a stretch part of the free pieces of one kind."""
        end = offset + length
        left = pieces.ends.get(offset)
        if left is not None:
            length += pieces.remove(left)
            offset = left
        if end in pieces.starts:
            length += pieces.remove(end)
        pieces.add(offset, length)

    def _carve(self, offset: int, length: int) -> Range:
        """Take a stretch that starts with a piece and is free as far as it is needed."""
        at, end = offset, offset + length
        cold: list[tuple[int, int]] = []
        while at < end:
            pieces = self._warm if at in self._warm.starts else self._cold
            found = pieces.remove(at)
            used = min(found, end - at)
            if found > used:
                pieces.add(at + used, found - used)
            if pieces is self._cold:
                cold.append((at, used))
            at += used
        self._taken[offset] = length
        return Range(offset, length, tuple(cold))

    def _joined(self, length: int) -> int:
        """Find the shortest run of free pieces of both kinds that is long enough; return its start.

        Looks at every piece, but is asked only when nearly all of the segment is taken.
        """
        start = end = 0
        best: tuple[int, int] | None = None
        for offset, found in sorted([*self._warm.starts.items(), *self._cold.starts.items()]):
            if offset != end:
                start = offset
            end = offset + found
            following = end in self._warm.starts or end in self._cold.starts
            if not following and end - start >= length and (best is None or end - start < best[0]):
                best = (end - start, start)
        if best is None:
            raise ArenaFull(f"no {length} bytes left in a segment of {self.size}")
        return best[1]


#: A segment has a zone for short stretches if it has room for so many huge pages; it is a part in so many.
_LEAST_HUGE_PAGES = 64
_PART = 4


class Zones:
    """The free space of one segment in two zones, one of them for stretches shorter than a huge page.

    A short stretch that stays, a small result say, would cut what long ones leave behind into pieces that
    are too short for the next. Where one zone has no room left, it goes on in the other.

    Parameters
    ----------
    size, page, huge : int
        As for `Ranges`.
    """

    __slots__ = ("_long", "_short", "_start", "huge")

    def __init__(self, size: int, page: int, huge: int) -> None:
        self.huge = huge
        size -= size % page
        short = size // _PART // huge * huge if size >= _LEAST_HUGE_PAGES * huge else 0
        #: Where the zone for short stretches starts.
        self._start = size - short
        self._long = Ranges(self._start, page, huge)
        self._short = Ranges(short, page)

    @property
    def warm_bytes(self) -> int:
        """Free bytes whose pages are there."""
        return self._long.warm_bytes + self._short.warm_bytes

    @property
    def cold_bytes(self) -> int:
        """Free bytes whose pages are not there."""
        return self._long.cold_bytes + self._short.cold_bytes

    def allocate(self, nbytes: int) -> Range:
        """Take a stretch, as `Ranges.allocate`."""
        if nbytes >= self.huge:
            try:
                return self._long.allocate(nbytes)
            except ArenaFull:
                return self._shifted(self._short.allocate(nbytes))
        try:
            return self._shifted(self._short.allocate(nbytes))
        except ArenaFull:
            return self._long.allocate(nbytes)

    def free(self, offset: int, length: int, warm: bool = True) -> None:
        """Take a stretch back, as `Ranges.free`."""
        if offset < self._start:
            self._long.free(offset, length, warm)
        else:
            self._short.free(offset - self._start, length, warm)

    def shrink(self, offset: int, length: int, nbytes: int) -> int:
        """Keep the first part of a stretch, as `Ranges.shrink`."""
        if offset < self._start:
            return self._long.shrink(offset, length, nbytes)
        return self._short.shrink(offset - self._start, length, nbytes)

    def trim(self, nbytes: int) -> list[Range]:
        """Take out warm pages, as `Ranges.trim`; short stretches if they are enough, else long ones first."""
        taken = self._long.trim(nbytes) if nbytes > self._short.warm_bytes else []
        left = nbytes - sum(each.length for each in taken)
        return taken + [self._shifted(each) for each in self._short.trim(left)]

    def _shifted(self, found: Range) -> Range:
        start = self._start
        cold = tuple([(offset + start, length) for offset, length in found.cold])
        return Range(found.offset + start, found.length, cold)
