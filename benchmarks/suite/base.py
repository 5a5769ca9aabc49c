"""What the suite wants of a workload beyond what `benchmarks.workload` has: how it is run on any engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.suite.scales import Scale
from benchmarks.workload import DOUBLE, Workload, dask_compute, differs, result

#: A function and its arguments.
Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Kind(Enum):
    """What a workload mostly does, and so by which figure it is judged."""

    ARRAY = "array"
    BLAS = "BLAS"
    PYTHON = "Python"
    TINY = "tiny tasks"
    TABLE = "table"
    MUTATION = "mutation"


class NotApplicable(Exception):
    """An engine cannot run this kind of work; says why."""


@dataclass(frozen=True, slots=True)
class Running:
    """An engine that has started."""

    #: What `dask.compute` is to be given.
    options: dict[str, Any] = field(default_factory=dict)
    #: Computes keys of a raw graph; None for engines that run no graphs.
    get: Callable[[Any, Any], Any] | None = None
    #: Runs independent calls; None for engines that run graphs.
    calls: Callable[[list[Call]], list[Any]] | None = None
    #: Tells how many bytes went to disk so far; None where that is not known.
    spilled: Callable[[], int | None] = lambda: None

    def start(self) -> None:
        """Run eight tasks that do nothing, so that all that runs tasks has started."""
        pairs: list[Call] = [(abs, (-number,)) for number in range(8)]
        if self.calls is not None:
            self.calls(pairs)
        elif self.get is not None:
            dsk = {("x", number): (function, *given) for number, (function, given) in enumerate(pairs)}
            self.get(dsk, list(dsk))


def run(workload: Workload, running: Running, output: Path) -> Callable[[], list[Any]]:
    """Prepare a computation, without running it; give what runs it.

    Raises
    ------
    NotApplicable
        The engine runs no such work.
    """
    if isinstance(workload, Calls):
        calls = workload.calls()
        if running.calls is not None:
            given = running.calls
            return lambda: [given(calls)]
        if isinstance(workload, Raw):
            dsk: dict[Any, Any] = {("x", n): (call[0], *call[1]) for n, call in enumerate(calls)}
            assert running.get is not None
            get = running.get
            return lambda: [get(dsk, list(dsk))]
    if running.get is None:
        raise NotApplicable("runs calls, not graphs")
    collections = workload.collections(output)
    return lambda: list(dask_compute(*collections, **running.options))


class Suited(Workload):
    """A workload of the suite's own.

    Parameters
    ----------
    sizes : Scale
        How large it is.
    folder : Path
        Where data are, and what is remembered of right answers.
    """

    sizes: Scale
    kind: ClassVar[Kind]

    @property
    def label(self) -> str:
        """What tells its data from those of other workloads and sizes."""
        return f"{self.name}-{self.sizes.name}"


class Compared(Suited):
    """A workload on data that are random, yet the same each time; one thread gives the right answer."""

    tolerance: ClassVar[float] = DOUBLE

    def mistake(self, output: Path) -> str | None:
        """Compare with what one task after the other gives."""
        right = self.remembered("right", lambda: self._right(output))
        found = [np.load(path) for path in sorted(output.glob("result-*.npy"))]
        together = np.concatenate([np.ravel(np.asarray(each, dtype="f8")) for each in found])
        return differs("the result", together, right, self.tolerance)

    def _right(self, output: Path) -> Any:
        results = dask_compute(*self.collections(output), scheduler="sync")
        return np.concatenate([np.ravel(np.asarray(each, dtype="f8")) for each in results])


class Calls(Suited):
    """Independent calls of Python functions, which engines without graphs can run too."""

    @abstractmethod
    def calls(self) -> list[Call]:
        """Give what is to be called."""

    @abstractmethod
    def answers(self) -> Any:
        """Give what the calls must return."""

    def mistake(self, output: Path) -> str | None:
        """Compare with the right answers."""
        return differs("an answer", result(output, 0), self.remembered("right", self.answers), DOUBLE)


class Raw(Calls):
    """A graph without collections."""

    def collections(self, output: Path) -> list[Any]:
        """Refuse: there are none."""
        raise NotApplicable(f"{self.name} is a raw graph, whose answers go to {output} all the same")
