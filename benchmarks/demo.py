"""An out-of-core computation with graphmill and with Dask's threads: time, memory, and whether they agree.

Started by scripts/demo. Each program of the examples folder runs in processes of its own; this one makes the
data, watches, and compares what they have stored.

    python -m benchmarks.demo [--gigabytes 2] [--workers N] [--quick] [--example anomaly]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from benchmarks.cube import Cube, make_cube
from benchmarks.files import files_of, read_once
from benchmarks.footprint import Footprint, Memory, ProgramFailed, watch

ROOT = Path(__file__).parents[1]
SCHEDULERS = ("graphmill", "threads")
#: Those that read a Zarr array and let the scheduler be chosen; others show xarray.
EXAMPLES = ("anomaly", "despike", "eof")

#: Maps of a quarter of a degree, and of one degree for --quick.
GRID, QUICK_GRID = (720, 1440), (180, 360)
GIGABYTES, QUICK_GIGABYTES = 2.0, 0.05

#: Disk space for data and results, relative to the data without compression: results may be as large, twice.
ROOM = 3

#: What results may differ by, relative to the largest value. BLAS rounds differently with more threads.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a demonstration has shown."""

    #: The runs of each scheduler, in the order in which they were made.
    runs: dict[str, list[Footprint]]
    #: The largest difference between the results.
    difference: float
    #: Whether it is small enough.
    agree: bool


class Demo:
    """One demonstration.

    Parameters
    ----------
    folder : Path
        Where data and results are.
    example : str
        The program to run.
    workers : int, optional
        How many tasks run at once; by default one per CPU.
    repeats : int
        How often each scheduler runs it, in turn.
    console : Console
        What to print on.
    """

    def __init__(
        self, folder: Path, example: str, workers: int | None, repeats: int, console: Console
    ) -> None:
        self._folder = folder
        self._example = example
        self._workers = workers
        self._repeats = repeats
        self._console = console

    def run(self, cube: Cube) -> Outcome:
        """Make the data, let all schedulers compute, and compare.

        Raises
        ------
        ProgramFailed
            An example did not end well.
        OSError
            There is no room for data or results.
        """
        store = self._store(cube)
        with tempfile.TemporaryDirectory(prefix="results-", dir=self._folder) as results:
            outputs = {scheduler: Path(results, f"{scheduler}.zarr") for scheduler in SCHEDULERS}
            read_once(store)
            runs: dict[str, list[Footprint]] = {scheduler: [] for scheduler in SCHEDULERS}
            for _ in range(self._repeats):
                for scheduler in SCHEDULERS:
                    runs[scheduler].append(self._measure(scheduler, store, outputs[scheduler]))
            difference, agree = compare(*outputs.values())
        return Outcome(runs, difference, agree)

    def _store(self, cube: Cube) -> Path:
        """Make the data where there is none yet."""
        store = self._folder / cube.name
        if not store.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            needed = ROOM * cube.nbytes
            if free < needed:
                raise OSError(
                    f"{self._folder} has {free / 1e9:.1f} GB left; {needed / 1e9:.1f} GB are needed"
                    " (set DEMO_FOLDER, or make it smaller with --gigabytes)"
                )
            quiet = not self._console.is_terminal
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self._console, transient=True, disable=quiet) as progress:
                task = progress.add_task("making the data, once", total=cube.nbytes)
                make_cube(self._folder, cube, lambda nbytes: progress.advance(task, nbytes))
        self._console.print(
            f"[bold]{store.name}[/]: {cube.days} daily maps of {cube.height} by {cube.width}, "
            f"{cube.nbytes / 1e9:.2f} GB ({size_on_disk(store) / 1e9:.2f} GB on disk)",
            highlight=False,
        )
        return store

    def _measure(self, scheduler: str, store: Path, output: Path) -> Footprint:
        """Run the example once."""
        command = [sys.executable, str(ROOT / "examples" / f"{self._example}.py"), "--store", str(store)]
        command += ["--output", str(output), "--scheduler", scheduler]
        if self._workers is not None:
            command += ["--workers", str(self._workers)]
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        quiet = not self._console.is_terminal
        # Drawn only as often as there is something new: a thread that redraws would cost time.
        with Progress(
            *columns, console=self._console, transient=True, auto_refresh=False, disable=quiet
        ) as progress:
            told = Told(progress, f"{self._example} with {scheduler}")
            footprint = watch(command, tell=None if quiet else told)
        said = footprint.output.strip() or "(nothing)"
        self._console.print(f"{scheduler}: {said}", highlight=False, markup=False)
        return footprint


class Told:
    """Shows how a program is doing, twice a second at most."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._task = progress.add_task(name, total=None)
        self._next = 0.0

    def __call__(self, seconds: float, peak: Memory) -> None:
        """Take in a look."""
        if seconds >= self._next:
            self._next = seconds + 0.5
            self._progress.update(self._task, description=f"{self._name}, peak {peak.total / 1e6:,.0f} MB")
            self._progress.refresh()


def size_on_disk(store: Path) -> int:
    """Count the bytes in the files of a store."""
    return sum(path.stat().st_size for path in files_of(store))


def compare(left: Path, right: Path) -> tuple[float, bool]:
    """Tell by how much two stored arrays differ, and whether that is little; reads them piece by piece."""
    ours: Any = zarr.open_array(str(left), mode="r")
    theirs: Any = zarr.open_array(str(right), mode="r")
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return float("inf"), False
    step = ours.chunks[0]
    difference, largest = 0.0, 0.0
    for first in range(0, ours.shape[0], step):
        a, b = ours[first : first + step], theirs[first : first + step]
        # NaN, which should not be there, is not less than anything: it stays, and they do not agree.
        difference = float(np.maximum(difference, np.abs(a - b).max()))
        largest = max(largest, float(np.abs(b).max()))
    return difference, largest > 0 and difference <= TOLERANCE * largest


def table(outcome: Outcome) -> Table:
    """Lay out time and memory: of several runs the shortest time, and the highest peak."""
    sheet = Table(caption_justify="left")
    for title in ("", "time", "peak memory", "= private", "+ shared"):
        sheet.add_column(title, justify="right" if title else "left", no_wrap=True)
    best = {name: min(run.seconds for run in runs) for name, runs in outcome.runs.items()}
    peak = {
        name: max((run.peak for run in runs), key=lambda memory: memory.total)
        for name, runs in outcome.runs.items()
    }
    for name, memory in peak.items():
        sizes = [f"{nbytes / 1e6:,.0f} MB" for nbytes in (memory.total, memory.private, memory.arenas)]
        sheet.add_row(name, f"{best[name]:.1f} s", *sizes)
    ours, theirs = SCHEDULERS
    if peak[theirs].total:
        share = peak[ours].total / peak[theirs].total
        sheet.add_section()
        sheet.add_row(f"{ours} / {theirs}", f"{best[ours] / best[theirs]:.2f}", f"{share:.2f}", "", "")
    return sheet


def positive(text: str) -> float:
    """Read a size."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no size")
    return number


def count(text: str) -> int:
    """Read a number of things."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--gigabytes", type=positive, help=f"size of the data, without compression (default: {GIGABYTES:g})"
    )
    parser.add_argument("--workers", type=count, help="how many tasks run at once (default: one per CPU)")
    parser.add_argument(
        "--quick", action="store_true", help=f"little data ({QUICK_GIGABYTES:g} GB) on a coarse grid"
    )
    parser.add_argument("--example", choices=EXAMPLES, default="anomaly", help="which one (default: anomaly)")
    parser.add_argument(
        "--repeats",
        type=count,
        help="runs of each, in turn, of which the quickest counts (default: 2; 1 if quick)",
    )
    wanted = parser.parse_args(given)
    if wanted.repeats is None:
        # Whoever runs first on a virtual machine also waits for memory that it never used before.
        wanted.repeats = 1 if wanted.quick else 2
    return wanted


def main(given: Sequence[str] | None = None) -> int:
    """Run a demonstration; 0 if the results agree."""
    wanted = arguments(given)
    console = Console()
    folder = Path(os.environ.get("DEMO_FOLDER") or ROOT / ".demo").absolute()
    gigabytes = wanted.gigabytes or (QUICK_GIGABYTES if wanted.quick else GIGABYTES)
    cube = Cube.of(gigabytes, *(QUICK_GRID if wanted.quick else GRID))
    try:
        outcome = Demo(folder, wanted.example, wanted.workers, wanted.repeats, console).run(cube)
    except (ProgramFailed, OSError) as error:
        console.print(f"scripts/demo: {error}", highlight=False, markup=False, soft_wrap=True)
        return 1
    console.print(table(outcome))
    if not outcome.agree:
        console.print(f"[bold red]The results differ[/], by up to {outcome.difference:g}.", highlight=False)
        return 1
    how = "identical" if outcome.difference == 0 else f"equal up to rounding ({outcome.difference:.1g})"
    console.print(f"[green]The results are {how}.[/]", highlight=False)
    if wanted.quick:
        console.print(
            "So little data shows what it costs to start processes, and nothing else.", highlight=False
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
