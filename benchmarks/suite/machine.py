"""What the suite was run on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import graphmill
from graphmill.machine import available_cpus, total_memory

PACKAGES = ("numpy", "dask", "zarr", "scipy", "xarray", "pandas", "distributed", "ray", "joblib")


def machine() -> dict[str, Any]:
    """Describe this machine and what is installed on it."""
    return {
        "cpu": cpu_model(),
        "cpus": available_cpus(),
        "memory_gb": round(total_memory() / 1e9, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": {"graphmill": graphmill.__version__, "python": platform.python_version()}
        | dict(versions()),
    }


def versions() -> Iterator[tuple[str, str]]:
    """Give the packages that are installed, with their versions."""
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def cpu_model() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
