"""How many workers there should be, where nobody has said a number.

Where memory is what keeps tasks waiting, workers that have nothing to do still hold what they have loaded and
kept for themselves. So those end, and come back once there is memory for their tasks.

Pure: whoever asks says what the time is.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Seconds for which workers have to be idle, as memory is short, until they end.
PATIENCE = 2.0
#: Seconds for which there has to be plenty of memory for more tasks until others start.
CAUTION = 1.0
#: Where workers end that have just been started, the next start has to wait so many times as long.
_LONGER = 4.0
_LONGEST = 60.0


@dataclass(slots=True)
class Adapting:
    """Decides on the number of workers of one engine.

    Parameters
    ----------
    most
        How many there are where memory is not short.
    """

    most: int
    #: Since when workers have been idle for want of memory, and how many at least; None while none are.
    _idle_since: float | None = None
    _idle: int = 0
    #: Since when there has been plenty of memory for tasks that wait; None while there is not.
    _plenty_since: float | None = None
    #: How long there has to be, and when workers were last started, if none have ended since.
    _caution: float = CAUTION
    _started: float | None = None

    @property
    def is_calm(self) -> bool:
        """Whether nothing is being watched."""
        return self._idle_since is None and self._plenty_since is None

    def forget(self) -> None:
        """Begin to watch anew."""
        self._idle_since = self._plenty_since = None

    def look(self, now: float, workers: int, idle: int, *, waiting: bool, plenty: bool) -> int:
        """Say how many workers there should be.

        Parameters
        ----------
        now
            Seconds on a clock that never goes back.
        workers
            How many there are.
        idle
            How many of them have nothing to do.
        waiting
            Whether there are tasks that could be begun.
        plenty
            Whether most memory is free.
        """
        if not waiting:
            self.forget()
            return workers
        if plenty or not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since, self._idle = now, idle
        else:
            self._idle = min(self._idle, idle)
            if now - self._idle_since >= PATIENCE and workers > 1:
                return self._shrink(now, workers)
        if not plenty or idle or workers >= self.most:
            self._plenty_since = None
        elif self._plenty_since is None:
            self._plenty_since = now
        elif now - self._plenty_since >= self._caution:
            self._plenty_since, self._started = None, now
            return min(self.most, 2 * workers)
        return workers

    def _shrink(self, now: float, workers: int) -> int:
        self._idle_since = None
        if self._started is not None:
            in_vain = now - self._started < _LONGER * PATIENCE
            self._caution = min(_LONGEST, _LONGER * self._caution) if in_vain else CAUTION
            self._started = None
        return max(1, workers - self._idle)
