"""Draws memory over time of one computation: with graphmill under a memory limit, and with Dask's threads.

    python -m benchmarks.limit_picture docs/pictures/limit.png

Needs ``matplotlib``, and the data of `benchmarks.memory`, which are made if they are not there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.files import read_once
from benchmarks.footprint import Lookout, watch
from benchmarks.suite.plots import COLOURS, STYLE
from benchmarks.workloads import WORKLOADS, Sizes

MB = 10**6
LIMIT = 800 * MB
WORKLOAD = "anomaly"
LABELS = {"threads": "Dask's threads", "graphmill": 'graphmill, memory_limit="800MB"'}


def measure(scheduler: str, data: Path) -> list[tuple[float, int]]:
    """Run the computation; give seconds and bytes."""
    lookout, points = Lookout(exactly=True), []
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "benchmarks.run_workload", WORKLOAD, "--scheduler", scheduler]
        command += ["--sized-for", str(LIMIT), "--data", str(data), "--output", output]
        if scheduler == "graphmill":
            command += ["--limit", str(LIMIT)]
        watch(command, tell=lambda seconds, _: points.append((seconds, lookout.now.total)), lookout=lookout)
    return points


def draw(curves: dict[str, list[tuple[float, int]]], title: str, file: Path) -> None:
    """Draw what was measured."""
    import matplotlib as mpl  # noqa: PLC0415 - nothing else needs it

    mpl.use("agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
        for name, points in curves.items():
            times, nbytes = zip(*points, strict=True)
            axis.plot(times, [each / MB for each in nbytes], color=COLOURS[name], label=LABELS[name])
        axis.axhline(LIMIT / MB, color="#bb0000", linewidth=1, linestyle="--")
        axis.annotate("the limit", (0, LIMIT / MB), (4, 3), textcoords="offset points", color="#bb0000")
        axis.set_title(title)
        axis.set_xlabel("seconds since the program's start")
        axis.set_ylabel("MB, all processes")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, loc="upper left")
        options: dict[str, Any] = {"dpi": 110, "metadata": {"Software": None}}
        figure.savefig(file, **options)
        plt.close(figure)


def main(given: Sequence[str] | None = None) -> int:
    """Measure, draw, and say what the peaks were."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limit_picture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="the picture")
    parser.add_argument("--data", type=Path, help="folder of the data (default: one in the temporary folder)")
    asked = parser.parse_args(given)
    data = asked.data or Path(tempfile.gettempdir(), "graphmill-benchmark-data")
    data.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[WORKLOAD](Sizes(LIMIT), data)
    read_once(workload.make())
    curves = {name: measure(name, data) for name in LABELS}
    for name, points in curves.items():
        print(f"{name}: {points[-1][0]:.1f} s, peak {max(nbytes for _, nbytes in points) / MB:.0f} MB")
    draw(curves, f"{workload.title} on 4 GB of Zarr, 2 workers", asked.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
