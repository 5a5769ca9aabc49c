"""How far runs have come, at any moment: what progress displays and live pages show.

Knows logs and glances. Must not know how it is shown.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from graphmill.diagnostics.log import RunLog, Tally, kind_of
from graphmill.diagnostics.records import highest
from graphmill.diagnostics.watch import Glance, Watched

#: Seconds over which the rate is taken.
WINDOW = 5.0


@dataclass(frozen=True, slots=True)
class KindState:
    """How far the tasks of one kind have come."""

    kind: str
    done: int
    running: int
    total: int

    @property
    def waiting(self) -> int:
        """How many have not begun."""
        return max(0, self.total - self.done - self.running)


@dataclass(frozen=True, slots=True)
class Picture:
    """How far all runs have come, at one moment."""

    #: Whether a run goes on, and whether the graph of one is still being read.
    active: bool = False
    reading: bool = False
    #: Tasks of all runs so far.
    done: int = 0
    running: int = 0
    total: int = 0
    #: Seconds during which there was a run.
    elapsed: float = 0.0
    #: Tasks that end in a second, of late.
    rate: float = 0.0
    #: Seconds until the end of what is known; None if nothing can be said.
    left: float | None = None
    #: By kind, in the order in which they began.
    kinds: tuple[KindState, ...] = ()
    #: All memory that counts, the most of it that was seen, and the limit; bytes.
    memory: int = 0
    peak: int = 0
    limit: int = 0
    #: Results on disk, and all that ever were moved there; bytes.
    on_disk: int = 0
    spilled: int = 0
    workers: int = 0
    busy: int = 0
    deaths: int = 0

    @property
    def waiting(self) -> int:
        """How many tasks have not begun."""
        return max(0, self.total - self.done - self.running)


@dataclass(slots=True)
class _Followed:
    """A run that goes on."""

    log: RunLog
    #: How many tasks there are, by what `batch_of` makes of their keys; None until the graph has been read.
    totals: Counter[Any] | None = None


@dataclass(slots=True)
class _Sums:
    """What has been counted, by kind."""

    total: Counter[str] = field(default_factory=Counter)
    done: dict[str, Tally] = field(default_factory=dict)
    deaths: int = 0

    def add(self, log: RunLog, totals: Counter[Any] | None, kinds: dict[Any, str]) -> None:
        """Count what a run has done; of one without totals, what is done is all."""
        for batch, count in (totals or {}).items():
            self.total[_named(kinds, batch)] += count
        for batch, tally in list(log.count().items()):
            kind = _named(kinds, batch)
            into = self.done.setdefault(kind, Tally())
            into.count += tally.count
            into.seconds += tally.seconds
            if totals is None:
                self.total[kind] += tally.count
        self.deaths += len(log.losses)


class Tracker:
    """Follows all runs that it is told of.

    Parameters
    ----------
    clock
        Gives seconds.
    """

    #: See `Watcher`.
    wants_entries = False

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._followed: list[_Followed] = []
        self._past = _Sums()
        self._kinds: dict[Any, str] = {}
        self._begun: dict[str, None] = {}
        self._engine: Watched | None = None
        self._glance: Glance | None = None
        self._spilled_before = 0
        self._peak = 0
        #: When runs last began to go on, and how long they went on before.
        self._since: float | None = None
        self._elapsed = 0.0
        self._recent: deque[tuple[float, int]] = deque()

    def on_run(self, engine: Watched, log: RunLog) -> None:
        """Take in that a run begins; see `Watcher`."""
        with self._lock:
            if engine is not self._engine:
                self._engine = engine
                self._glance = glance = engine.glance()
                self._spilled_before = 0 if glance is None else glance.spilled
            self._followed.append(_Followed(log))
            if self._since is None:
                self._since = log.began

    def let_go(self) -> None:
        """Know no engine any more."""
        with self._lock:
            self._engine = None

    def picture(self) -> Picture:
        """Look at all that there is now."""
        with self._lock:
            now = self._clock()
            self._close_ended(now)
            sums = _Sums(self._past.total.copy(), {k: _copy(t) for k, t in self._past.done.items()})
            sums.deaths = self._past.deaths
            running: Counter[str] = Counter()
            for followed in self._followed:
                if followed.totals is None and followed.log.keys is not None:
                    followed.totals = followed.log.totals()
                sums.add(followed.log, followed.totals, self._kinds)
                running += followed.log.running()
            return self._picture(now, sums, running)

    def _close_ended(self, now: float) -> None:
        """Add up what has ended; what a run that failed has not done is not waited for."""
        going = []
        for followed in self._followed:
            if followed.log.ended is None:
                going.append(followed)
            else:
                self._past.add(followed.log, None, self._kinds)
        self._followed = going
        if not going and self._since is not None:
            self._elapsed += now - self._since
            self._since = None
            self._recent.clear()

    def _in_order(self, sums: _Sums, running: Counter[str]) -> list[str]:
        """List kinds: in the order in which they were first seen to run, then those that wait."""
        kinds = list(sums.total)
        self._begun.update(dict.fromkeys(kind for kind in kinds if kind in sums.done or running[kind]))
        return [*self._begun, *(kind for kind in kinds if kind not in self._begun)]

    def _picture(self, now: float, sums: _Sums, running: Counter[str]) -> Picture:
        done = sum(tally.count for tally in sums.done.values())
        elapsed = self._elapsed + (0.0 if self._since is None else now - self._since)
        engine = self._engine
        glance = None if engine is None else engine.glance()
        if glance is not None:
            before, self._glance = self._glance or glance, glance
            self._peak = max(self._peak, highest([before, glance]))
        seen = self._glance
        none = Tally()
        return Picture(
            active=bool(self._followed),
            reading=any(followed.totals is None for followed in self._followed),
            done=done,
            running=running.total(),
            total=sums.total.total(),
            elapsed=elapsed,
            rate=self._rate(now, done),
            left=_left(sums, elapsed) if self._followed else None,
            kinds=tuple(
                KindState(kind, sums.done.get(kind, none).count, running[kind], sums.total[kind])
                for kind in self._in_order(sums, running)
            ),
            memory=0 if seen is None else seen.total,
            peak=self._peak,
            limit=0 if seen is None else seen.limit,
            on_disk=0 if seen is None else seen.on_disk,
            spilled=0 if seen is None else seen.spilled - self._spilled_before,
            workers=0 if engine is None else engine.num_workers,
            busy=0 if glance is None else glance.busy,
            deaths=sums.deaths,
        )

    def _rate(self, now: float, done: int) -> float:
        recent = self._recent
        if not recent and self._since is not None:
            recent.append((self._since, sum(tally.count for tally in self._past.done.values())))
        recent.append((now, done))
        while len(recent) > 2 and recent[1][0] < now - WINDOW:  # noqa: PLR2004 - one to compare with
            recent.popleft()
        then, before = recent[0]
        return (done - before) / (now - then) if now > then else 0.0


def _left(sums: _Sums, elapsed: float) -> float | None:
    """Guess how long it takes until all is done, from what tasks of each kind took."""
    spent = sum(tally.seconds for tally in sums.done.values())
    count = sum(tally.count for tally in sums.done.values())
    if not count or spent <= 0 or elapsed <= 0:
        return None
    mean = spent / count
    work = 0.0
    for kind, total in sums.total.items():
        tally = sums.done.get(kind)
        known = tally is not None and tally.count > 0
        each = tally.seconds / tally.count if tally is not None and known else mean
        work += max(0, total - (0 if tally is None else tally.count)) * each
    return work * elapsed / spent


def _named(kinds: dict[Any, str], batch: Any) -> str:
    kind = kinds.get(batch)
    if kind is None:
        kind = kinds[batch] = kind_of(batch)
    return kind


def _copy(tally: Tally) -> Tally:
    return Tally(tally.count, tally.seconds)
