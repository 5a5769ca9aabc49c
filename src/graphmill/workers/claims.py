"""Who runs a job that waits behind another: the worker that was given it, or another that the engine finds.

Before such a job is sent, the engine writes its number into a pipe that both can read. Whoever reads the
number has the job: the worker before it begins it, or the engine to take it back. A read of a pipe gives each
byte to one reader only, so nothing else is needed for both to agree at any moment, however long the task
takes behind which the job waits.

Numbers leave the pipe in the order in which jobs were sent. So if a worker reads the number of a later job
than the next it knows, those before were taken back; if it reads none, all that it has not begun were.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from graphmill.workers.work import Batch, Job

#: A number in the pipe. Written and read whole: far shorter than what a pipe keeps together.
_NUMBER: Final = struct.Struct("=q")


class Claims:
    """One end of the pipe of one worker, by which jobs are claimed.

    Parameters
    ----------
    descriptor
        The pipe, which does not wait.

    Notes
    -----
    A named pipe: the worker is told its path, and no descriptor has to be passed on.
    """

    __slots__ = ("_descriptor", "_path")

    def __init__(self, descriptor: int, path: Path | None = None) -> None:
        self._descriptor = descriptor
        #: To be removed in the end, by whoever has made it.
        self._path = path

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the pipe; the engine's end, which offers jobs and takes them back.

        Raises
        ------
        OSError
            If it cannot be made.
        """
        os.mkfifo(path, 0o600)
        try:
            # For both, as the end of a pipe that nobody writes to cannot be told from an empty one.
            return cls(os.open(path, os.O_RDWR | os.O_NONBLOCK), path)
        except OSError:
            path.unlink()
            raise

    @classmethod
    def attach(cls, path: Path) -> Self:
        """Open the pipe that the engine has made; the worker's end.

        Raises
        ------
        OSError
            If it is gone, as is the engine then.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

    def offer(self, number: int) -> bool:
        """Say that a job, which is sent after this, is to be claimed; False if so many are that none fits."""
        try:
            os.write(self._descriptor, _NUMBER.pack(number))
        except BlockingIOError:
            return False
        return True

    def claim(self) -> int | None:
        """Have the oldest job that nobody has yet; None if there is none.

        Returns
        -------
        int or None
            Its number.
        """
        try:
            found = os.read(self._descriptor, _NUMBER.size)
        except BlockingIOError:
            return None
        return int(_NUMBER.unpack(found)[0]) if found else None  # nothing: the engine is gone

    def close(self) -> None:
        """Close this end; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
            if self._path is not None:
                with suppress(FileNotFoundError):  # its folder is gone
                    self._path.unlink()


class JobQueue:
    """The jobs that a worker was given and has not begun, in the order in which they were sent.

    Parameters
    ----------
    claims
        The worker's end of its pipe; None where there cannot be any, and so no job has to be claimed.

    Attributes
    ----------
    cancelled
        Numbers of jobs that are to be reported without being run.
    """

    __slots__ = ("_ahead", "_claims", "_jobs", "_shared", "cancelled")

    def __init__(self, claims: Claims | None) -> None:
        self._claims = claims
        self._jobs: deque[Job | Batch] = deque()
        #: Those of them that are to be claimed first.
        self._shared: set[int] = set()
        #: One that is claimed already, behind others that were taken back.
        self._ahead: int | None = None
        self.cancelled: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def add(self, jobs: Iterable[Job | Batch], claimed: Iterable[int]) -> None:
        """Take on jobs, and the numbers of those of them that are to be claimed before they are begun."""
        self._shared.update(claimed)
        self._jobs.extend(jobs)

    def next(self) -> Job | Batch | None:
        """Take out the next job that is this worker's to run; None if none is left."""
        while self._jobs:
            job = self._jobs.popleft()
            if job.number not in self._shared or self._claims is None:
                return job
            self._shared.discard(job.number)
            number = self._claims.claim() if self._ahead is None else self._ahead
            if number == job.number:
                self._ahead = None
                return job
            self._ahead = number
            self.cancelled.discard(job.number)
        return None

    def close(self) -> None:
        """Close the pipe."""
        if self._claims is not None:
            self._claims.close()
