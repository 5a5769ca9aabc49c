"""Draws what the suite has measured, with matplotlib, which need not be there for anything else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.suite.engines import BASE, OURS
from benchmarks.suite.report import Report, over_workers
from benchmarks.suite.results import Results, Trace

#: One colour for each engine, told apart by those who see few colours too.
COLOURS = {
    "graphmill": "#0072b2",
    "threads": "#555555",
    "distributed": "#e69f00",
    "processes": "#cc79a7",
    "ray": "#009e73",
    "joblib": "#d55e00",
}
#: How all plots look.
STYLE: dict[str, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
#: Ratios beyond this are cut off.
WIDEST = 10.0


def can_draw() -> bool:
    """Tell whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(results: Results, folder: Path) -> list[tuple[str, str]]:
    """Draw all plots into a folder; give what each shows, and its name."""
    import matplotlib as mpl  # noqa: PLC0415 - nothing else needs it

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with plt.rc_context(STYLE):
        for name, title, function in (
            ("ratios.png", "Time and memory relative to threads", ratios),
            ("memory.png", "Memory over time", memory_over_time),
            ("scaling.png", "Time by number of workers", scaling),
        ):
            figure = function(results, plt)
            if figure is None:
                continue
            figure.savefig(folder / name, dpi=110, bbox_inches="tight", metadata={"Software": None})
            plt.close(figure)
            drawn.append((title, name))
    return drawn


def ratios(results: Results, plt: Any) -> Any:
    """Draw bars: for each workload, time and peak memory of each engine over those of threads."""
    report = Report(results)
    engines = [engine for engine in report.engines if engine not in (BASE, "joblib")]
    if not report.workloads or not engines:
        return None
    size = (10, 0.5 + 0.42 * len(report.workloads))
    figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    height = 0.8 / len(engines)
    for axis, what in zip(axes, ("time", "memory"), strict=True):
        for at, engine in enumerate(engines):
            rows, values = [], []
            for row, name in enumerate(report.workloads):
                found = report.compared(name, engine)
                value = None if found is None else getattr(found, what)
                if value is None and what == "time" and found is not None:
                    value = found.at_least
                if value is not None:
                    rows.append(row + (at - (len(engines) - 1) / 2) * height)
                    values.append(min(value, WIDEST) - 1)
            # From 1, where threads are: to the left is less, to the right is more.
            axis.barh(rows, values, height, left=1, color=COLOURS[engine], label=engine)
        axis.axvline(1, color=COLOURS[BASE], linewidth=1)
        axis.set_xscale("log")
        axis.set_xlim(0.1, WIDEST)
        axis.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10+"])
        axis.set_xlabel("time / threads" if what == "time" else "peak memory / threads")
        axis.grid(visible=True, axis="x", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(report.workloads)), report.workloads)
    axes[0].set_ylim(len(report.workloads) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(engines), frameon=False)
    return figure


def memory_over_time(results: Results, plt: Any) -> Any:
    """Draw memory over time of each engine, for the workloads that were traced."""
    by_workload: dict[str, list[Trace]] = {}
    for trace in results.traces:
        by_workload.setdefault(trace.workload, []).append(trace)
    if not by_workload:
        return None
    size = (4.8 * len(by_workload), 3)
    figure, axes = plt.subplots(1, len(by_workload), figsize=size, squeeze=False, layout="constrained")
    for axis, (name, traces) in zip(axes[0], by_workload.items(), strict=True):
        for trace in traces:
            times, nbytes = zip(*trace.points, strict=True)
            megabytes = [each / 1e6 for each in nbytes]
            width = 1.8 if trace.engine == OURS else 1.2
            axis.plot(times, megabytes, color=COLOURS[trace.engine], label=trace.engine, linewidth=width)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("seconds since the program's start")
        axis.set_ylabel("MB, all processes")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
    axes[0][0].legend(frameon=False)
    return figure


def scaling(results: Results, plt: Any) -> Any:
    """Draw times over numbers of workers, for the workloads that were measured with several."""
    lines = list(over_workers(results))
    names = list(dict.fromkeys(name for name, _, _ in lines))
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (3.2 * columns, 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for name, engine, counts in lines:
        axis = axes.flat[names.index(name)]
        found = [results.compared(name, engine, count) for count in counts]
        times = [each.seconds if each is not None else None for each in found]
        axis.plot(counts, times, "o-", color=COLOURS[engine], label=engine, markersize=4)
        axis.set_title(name, fontsize=9)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xlabel("workers")
    for axis in axes.flat[: len(names)]:
        axis.set_ylim(bottom=0)
    for row in axes:
        row[0].set_ylabel("seconds")
    axes.flat[0].legend(frameon=False, fontsize=8)
    return figure
