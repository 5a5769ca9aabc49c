"""Pages of shared memory that come 2 MB at a time, where the system can do it.

A page of shared memory costs a fault to put in place and another in each process that looks at it, and
systems are usually set to use small ones only. But Linux (from 6.1) makes a huge page of what it is asked to,
whatever it is set to use, if at least one of the small ones in it is there.
"""

from __future__ import annotations

import errno
import os
import time

from graphmill.memory.mapping import HUGE_PAGE, advise

#: `MADV_COLLAPSE`, for which Python has no name.
COLLAPSE = 25

#: Seconds of work per huge page from which on it was too slow: small ones take 2 ms or less. Where free
#: memory is in small pieces, the system moves others about.
_SLOW = 0.006
#: So many times small pages are used after that.
_PAUSE = 16


class HugePages:
    """Puts huge pages into one file of shared memory."""

    __slots__ = ("_left_out", "usable")

    def __init__(self) -> None:
        #: Whether this system can do it, as far as is known.
        self.usable = True
        #: How many times it is still left out.
        self._left_out = 0

    def fill(self, descriptor: int, mapping: memoryview, offset: int, nbytes: int) -> tuple[int, int]:
        """Put huge pages into a range where no page is, as far as whole ones lie in it.

        Parameters
        ----------
        descriptor : int
            The file.
        mapping : memoryview
            A shared mapping of all of it, aligned as huge pages are.
        offset, nbytes : int
            The range, in bytes.

        Returns
        -------
        (int, int)
            Where pages are now, from and to, in bytes; from `offset` to `offset` if nowhere for sure.
        """
        begin = -(-offset // HUGE_PAGE) * HUGE_PAGE
        end = (offset + nbytes) // HUGE_PAGE * HUGE_PAGE
        if not self.usable or begin >= end:
            return offset, offset
        if self._left_out:
            self._left_out -= 1
            return offset, offset
        began = time.thread_time()
        try:
            for at in range(begin, end, HUGE_PAGE):
                os.posix_fallocate(descriptor, at, 1)
            advise(mapping, begin, end - begin, COLLAPSE)
        except OSError as error:
            # No room, or no large piece of it: small pages tell whether there is none at all.
            self.usable = error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
            self._left_out = _PAUSE
            return offset, offset
        if time.thread_time() - began > _SLOW * (end - begin) / HUGE_PAGE:
            self._left_out = _PAUSE
        return begin, end
