"""Lays out what the suite has measured, as Markdown that is as well read in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.suite.base import Kind
from benchmarks.suite.catalogue import WORKLOADS
from benchmarks.suite.engines import BASE, ENGINES, OURS
from benchmarks.suite.figures import figures
from benchmarks.suite.results import RIGHT, Compared, Results, geometric_mean, middle
from benchmarks.suite.scales import SCALES

MB = 10**6

INTRODUCTION = """\
# Benchmarks

What Dask's users really do, on every engine, measured by `python -m benchmarks`. Each run has a process of
its own; engines take turns; every answer is checked. *Time* is that of a computation, from `compute` to its
answer: of {computes} in each process the quickest, over processes the median. Where an engine starts
processes, that is not in it, and stands further below; `dask.multiprocessing` starts them anew for each
computation. *Memory* is the peak over all processes of a run: private pages (`Pss_Anon`, so that pages which
forks share count once) and files in shared memory, each once. Both are given **relative to threads in the
same session**: 0.50 / 0.80 means half the time and 0.8 of the memory.
"""

READING = """\
"> 8" is a run that was ended after it had taken so many times as long as threads. A dash stands for what
failed or does not apply; the notes say why. Engines that fail, or take more than three times as long as
threads, are run only once.
"""

#: CPUs that other programs may take unmentioned.
IDLE = 0.15
#: Stands in cells for what could not be measured.
NOTHING = "-"


class Report:
    """A report of all results at one scale.

    Parameters
    ----------
    results : Results
        What was measured.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        counts = Counter(run.workers for run in results.runs)
        #: For which number of workers most was measured.
        self.workers = counts.most_common(1)[0][0] if counts else 0
        measured = {(run.workload, run.engine) for run in results.runs if run.workers == self.workers}
        self.workloads = [name for name in WORKLOADS if any(each == name for each, _ in measured)]
        self.engines = [name for name in ENGINES if any(each == name for _, each in measured)]
        #: Why cells are empty, in the order in which notes are numbered.
        self._notes: list[str] = []

    def compared(self, workload: str, engine: str) -> Compared | None:
        """Get what was measured."""
        return self._results.compared(workload, engine, self.workers)

    def page(self, plots: Sequence[tuple[str, str]] = ()) -> str:
        """Lay out all of it, with plots: what each shows, and its path."""
        computes = max((len(run.seconds) for run in self._results.runs), default=1)
        parts = [INTRODUCTION.format(computes=computes), self.machine(), self.table(), READING, self.notes()]
        parts += [f"![{title}]({path})\n" for title, path in plots]
        parts += ["## Wanted and found\n", self.summary()]
        parts += [
            "## Starting\n",
            self.starting(),
            "## Tiny tasks\n",
            self.per_task(),
            "## More workers\n",
            self.scaling(),
            "## All figures\n",
        ]
        parts += [self.details()]
        return "\n".join(part for part in parts if part)

    def machine(self) -> str:
        """Say what it was measured on."""
        about = self._results.machine
        versions = ", ".join(f"{name} {number}" for name, number in about.get("versions", {}).items())
        return (
            f"Measured with {self.workers} workers on {about.get('cpus')} CPUs ({about.get('cpu')}), "
            f"{about.get('memory_gb')} GB of memory, {about.get('system')}; {versions}.\n{self._others()}"
        )

    def _others(self) -> str:
        """Warn of other programs, if there were any to speak of."""
        # Of threads all CPU time is known; others may have processes that nobody waits for.
        taken = middle(run.others for run in self._results.runs if run.engine == BASE and run.seconds)
        if taken is None or taken < IDLE:
            return ""
        return (
            f"\n**Other programs took {taken:.1f} CPUs meanwhile:** times are longer than they should be, and"
            " ratios of times are uncertain.\n"
        )

    def table(self) -> str:
        """Lay out ratios to threads: a row for each workload."""
        others = [engine for engine in self.engines if engine != BASE]
        rows = []
        for name in self.workloads:
            base = self.compared(name, BASE)
            row = [name, *self._base_cells(base)]
            rows.append(row + [self._cell(name, engine) for engine in others])
        rows.append(["**geometric mean**", "", "", *(self._mean_cell(engine) for engine in others)])
        head = ["workload", "threads, s", "threads, MB", *others]
        return table(head, rows)

    def _base_cells(self, base: Compared | None) -> list[str]:
        if base is None or base.seconds is None or base.peak is None:
            return [NOTHING, NOTHING]
        wrong = "" if base.outcome == RIGHT else self._note(BASE, base.outcome)
        return [f"{base.seconds:.2f}{wrong}", f"{base.peak / MB:.0f}"]

    def _cell(self, workload: str, engine: str) -> str:
        found = self.compared(workload, engine)
        if found is None:
            return ""
        if found.time is None:
            if found.at_least is not None:
                return f"> {found.at_least:.0f}"
            return f"{NOTHING}{self._note(engine, found.outcome)}"
        note = "" if found.outcome == RIGHT else self._note(engine, found.outcome)
        memory = "" if found.memory is None else f" / {found.memory:.2f}"
        time = f"{found.time:.2f}" if found.time < 10 else f"{found.time:.0f}"
        return f"{time}{memory}{note}"

    def _mean_cell(self, engine: str) -> str:
        found = [self.compared(name, engine) for name in self.workloads]
        measured = [each for each in found if each is not None and each.time is not None]
        time = geometric_mean(each.time for each in measured if each.time is not None)
        memory = geometric_mean(each.memory for each in measured if each.memory is not None)
        if time is None or memory is None:
            return ""
        return f"{time:.2f} / {memory:.2f}{f' (of {len(measured)})' if len(measured) < len(found) else ''}"

    def _note(self, engine: str, why: str) -> str:
        text = f"{engine}: {why}"
        if text not in self._notes:
            self._notes.append(text)
        return f" ({self._notes.index(text) + 1})"

    def notes(self) -> str:
        """List why cells are empty, once `table` was laid out."""
        return "".join(f"{number}. {note}\n" for number, note in enumerate(self._notes, 1))

    def summary(self) -> str:
        """Lay out the figures that are wanted."""
        rows = [
            [
                figure.name,
                f"{figure.most:g}",
                NOTHING if figure.found is None else f"{figure.found:.3g}",
                figure.verdict,
                figure.of,
            ]
            for figure in figures(self._results, self.workers)
        ]
        return table(["graphmill", "at most", "found", "holds", "of"], rows)

    def starting(self) -> str:
        """Lay out what engines take to start, and what first computations take."""
        rows = []
        for engine in self.engines:
            every = [self.compared(name, engine) for name in self.workloads]
            found = [each for each in every if each is not None]
            times = sorted(
                run.started for each in found for run in each.runs if run.started is not None and run.seconds
            )
            if not times:
                continue
            first = geometric_mean(each.first_time for each in found if each.first_time is not None)
            shown = NOTHING if first is None else f"{first:.2f}"
            rows.append([ENGINES[engine].title, f"{times[len(times) // 2]:.2f}", f"{times[-1]:.2f}", shown])
        return table(
            ["engine", "start, s (median)", "start, s (longest)", "first computations, time / threads"], rows
        )

    def per_task(self) -> str:
        """Lay out what a task costs that does nothing, all in all."""
        rows = []
        for name in self.workloads:
            if WORKLOADS[name].kind is not Kind.TINY:
                continue
            scale = next(run.scale for run in self._results.runs if run.workload == name)
            count = WORKLOADS[name](SCALES[scale], Path()).tasks
            found = [self.compared(name, engine) for engine in self.engines]
            costs = [
                f"{each.seconds / count * 1e6:.0f}" if each and each.seconds else NOTHING for each in found
            ]
            rows.append([f"{name}, {count:,} tasks", *costs])
        return table(["µs per task", *self.engines], rows) if rows else "Not measured.\n"

    def scaling(self) -> str:
        """Lay out times for several numbers of workers, for workloads that have them."""
        rows = []
        for name, engine, counts in over_workers(self._results):
            found = [(count, self._results.compared(name, engine, count)) for count in counts]
            times = [f"{count}: {each.seconds:.2f}" for count, each in found if each and each.seconds]
            rows.append([name, engine, ", ".join(times)])
        return table(["workload", "engine", "seconds, by workers"], rows) if rows else "Not measured.\n"

    def details(self) -> str:
        """Lay out all absolute figures."""
        head = ["workload", "engine", "s", "± %", "first, s", "peak MB", "private", "shared", "RSS, summed"]
        rows = [
            [name, engine, *self._detail(found)]
            for name in self.workloads
            for engine in self.engines
            if (found := self.compared(name, engine)) is not None and found.measured
        ]
        return table([*head, "spilled MB", "CPU s", "runs"], rows)

    def _detail(self, found: Compared) -> Iterator[str]:
        runs = [run for run in found.runs if run.seconds]
        top = max(runs, key=lambda run: run.peak)
        yield f"{found.seconds:.3f}"
        yield f"{100 * found.spread:.0f}"
        yield f"{found.first:.3f}"
        for nbytes in (top.peak, top.private, top.shared, max(run.resident for run in runs)):
            yield f"{nbytes / MB:.0f}"
        yield NOTHING if top.spilled is None else f"{top.spilled / MB:.0f}"
        yield f"{top.cpu:.1f}"
        yield str(len(runs))


def over_workers(results: Results) -> Iterator[tuple[str, str, list[int]]]:
    """Give workloads and engines that were measured with several numbers of workers, and those."""
    for name in WORKLOADS:
        for engine in (BASE, OURS, "distributed"):
            counts = {
                run.workers
                for run in results.runs
                if (run.workload, run.engine) == (name, engine) and run.seconds
            }
            if len(counts) > 1:
                yield name, engine, sorted(counts)


def workloads_page() -> str:
    """Say what each workload computes."""
    return table(
        ["workload", "what", "kind"], ([name, w.title, w.kind.value] for name, w in WORKLOADS.items())
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table whose columns stand below each other in plain text too."""
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(head), *body]) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * width) if at == 0 else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(head), f"| {' | '.join(rule)} |", *(line(row) for row in body)]) + "\n"
