"""All workloads of the suite, by name, in the order in which they are run and shown."""

from __future__ import annotations

from typing import Any

from benchmarks.suite import arrays, others

WORKLOADS: dict[str, Any] = {
    workload.name: workload
    for workload in (
        arrays.Elementwise,
        arrays.TransposeSum,
        arrays.Rechunk,
        arrays.Stencil,
        arrays.Anomaly,
        arrays.ThreeMeans,
        arrays.Fft,
        arrays.Store,
        arrays.Histogram,
        arrays.Climatology,
        arrays.Resample,
        arrays.Gram,
        arrays.Svd,
        others.PythonBlocks,
        others.Bag,
        others.GroupBy,
        others.TinyBlocks,
        others.Independent,
        arrays.ChangedInPlace,
    )
}
