"""What is done in the caller's process: tasks that stay, and ends of others in which user's code has a part.

It is done by the thread that called `get`, one after the other: filters of warnings, objects that tasks write
to and tasks that cannot be sent are the user's own.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from graphmill.diagnostics.log import Outcome, RunLog
from graphmill.engine.sending import Task
from graphmill.engine.staying import Target
from graphmill.engine.stored import resolve
from graphmill.memory.block import Encoded
from graphmill.scheduler.events import TaskFailed, TaskFinished
from graphmill.types import Key
from graphmill.workers import shipped
from graphmill.workers.warned import warn_again
from graphmill.workers.work import Warned

logger = logging.getLogger("graphmill")


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left to do for a task that a worker has run; it has ended when that is done."""

    key: Key
    #: Its result, or what it raised.
    outcome: Encoded | BaseException
    #: What it wrote to objects of this process: numbers of objects, indices and values.
    writes: Encoded | None
    #: Warnings that it gave.
    warned: tuple[Warned, ...]
    #: Where it ran, for how many seconds, and how many bytes it took.
    worker: int
    seconds: float
    taken: int

    def finished(self, value: Encoded) -> TaskFinished:
        """Say that it has ended, with a result."""
        return TaskFinished(self.key, value, value.nbytes, self.worker, self.seconds, self.taken)


class Host(Protocol):
    """The engine, as far as it matters to what is done here."""

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for."""

    def look_after(self, values: Iterable[Any]) -> None:
        """Forget changes to values that were read."""


class Here:
    """What is to be done in this process for one run, the first first.

    Parameters
    ----------
    engine
        Whose values tasks are given.
    log
        What is to be written for those who watch; None if nobody does.
    """

    def __init__(self, engine: Host, log: RunLog | None) -> None:
        self._engine = engine
        self._log = log
        self._queue: deque[Task | Rest] = deque()
        #: Objects of this process that tasks store to, by number.
        self._targets: dict[int, Target] = {}
        #: Warnings that were given already.
        self._warned: set[Warned] = set()
        #: Whether it was said that tasks run in this process.
        self._said = False

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, what: Task | Rest) -> None:
        """Have something done."""
        self._queue.append(what)

    def keep(self, task: Task, why: BaseException) -> None:
        """Have a task run that cannot be sent."""
        level = logging.DEBUG if self._said else logging.WARNING
        self._said = True
        logger.log(level, "the task %r runs in this process, as do others like it: %s", task.key, why)
        self.add(task)

    def aim(self, number: int, target: Target) -> None:
        """Know an object that tasks store to, whose number stands for it in workers."""
        shipped.add_target(number, target.obj)
        self._targets[number] = target

    def do_next(self) -> tuple[TaskFinished | TaskFailed, Encoded | None]:
        """Do what is to be done first; give what came of it, and what was written and is not needed now."""
        what = self._queue.popleft()
        return (self._run(what), None) if isinstance(what, Task) else (self._end(what), what.writes)

    def value_of(self, value: Any) -> Any:
        """Make the value that is meant by what a run keeps of it."""
        return self._engine.read(value) if type(value) is Encoded else resolve(value)

    def _run(self, task: Task) -> TaskFinished | TaskFailed:
        news: TaskFinished | TaskFailed
        values: dict[Key, Any] = {}
        began, outcome = time.perf_counter(), Outcome.FAILED
        try:
            values = {key: self.value_of(value) for key, value in task.values.items()}
            result = task.node(values)
        except Exception as error:  # noqa: BLE001 - raised by the loop, as what the task raised
            news = failed(task.key, error)
        else:
            news = TaskFinished(task.key, result)
            outcome = Outcome.DONE
        if self._log is not None:
            self._log.here(task.key, began, outcome)
        del values  # what is left of them are views that somebody keeps
        self._engine.look_after(task.values.values())
        return news

    def _end(self, rest: Rest) -> TaskFinished | TaskFailed:
        outcome = rest.outcome
        try:
            warn_again(rest.warned, self._warned)
            if rest.writes is not None:
                self._write(rest.writes)
        except Exception as error:  # noqa: BLE001 - raised by the loop, as what the task raised
            # A filter that makes errors of warnings must not hide what the task itself has raised.
            outcome = outcome if isinstance(outcome, BaseException) else error
        if rest.writes is not None:
            self._engine.look_after([rest.writes])
        return failed(rest.key, outcome) if isinstance(outcome, BaseException) else rest.finished(outcome)

    def _write(self, writes: Encoded) -> None:
        """Do to objects of this process what a task did to what stood for them."""
        for number, index, value in self._engine.read(writes):
            target = self._targets[number]
            with target.locked():
                target.obj[index] = value

    def cancel(self) -> None:
        """Have nothing more done."""
        self._queue.clear()

    def close(self) -> None:
        """Let go of the objects that tasks store to."""
        for number in self._targets:
            shipped.forget_target(number)
        self._targets.clear()


def failed(key: Key, error: BaseException) -> TaskFailed:
    """Say that a task has raised something."""
    return TaskFailed(key, error, traceback=error.__traceback__)
