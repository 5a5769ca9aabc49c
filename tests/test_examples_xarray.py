"""The examples for xarray, with `scheduler=graphmill.get` and under `graphmill run`, against threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphmill

xr = pytest.importorskip("xarray")
pytest.importorskip("zarr")
pytest.importorskip("h5netcdf")

ROOT = Path(__file__).parents[1]
SOURCE = str(Path(graphmill.__file__).parents[1])
LIMIT = 100


@pytest.fixture(scope="module")
def daily(tmp_path_factory):
    """Five months of small maps."""
    path = tmp_path_factory.mktemp("daily") / "daily.zarr"
    times = np.datetime64("2020-01-01") + np.arange(150)
    values = np.random.default_rng(0).normal(280, 10, (150, 6, 8))
    data = xr.Dataset({"temperature": (("time", "y", "x"), values)}, coords={"time": times})
    data.chunk(time=50, y=3).to_zarr(path, consolidated=False)
    return path


@pytest.fixture(params=["by argument", "graphmill run"])
def example(request, daily, tmp_path):
    """Run an example in either way; returns where its output is and what it printed."""

    def run(name, output):
        program, more = [], []
        if request.param == "graphmill run":
            program, more = ["-m", "graphmill", "run", "--quiet"], ["--scheduler", "default"]
        path = tmp_path / output
        ended = subprocess.run(
            [sys.executable, *program, ROOT / "examples" / name, *more, "--store", daily, "--output", path],
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": SOURCE, "GRAPHMILL_NUM_WORKERS": "2"},
        )
        assert ended.returncode == 0, ended.stderr
        assert "Traceback" not in ended.stderr
        return path, ended.stdout

    return run


def test_climatology(example, daily):
    path, printed = example("climatology.py", "climatology.zarr")
    temperature = xr.open_zarr(daily, consolidated=False).temperature.load()
    months = temperature.groupby("time.month")
    mean = months.mean("time")
    departure = abs(months - mean).groupby("time.month").max("time")
    with xr.open_zarr(path, consolidated=False) as written:
        np.testing.assert_allclose(written.climatology, mean, rtol=1e-12)
        np.testing.assert_allclose(written.largest_departure, departure, rtol=1e-12)
    assert printed.count("month ") == 5


def test_netcdf(example, daily):
    path, printed = example("netcdf.py", "monthly.nc")
    monthly = xr.open_zarr(daily, consolidated=False).load().resample(time="MS").mean()
    with xr.open_dataset(path, engine="h5netcdf") as written:
        xr.testing.assert_allclose(written, monthly.astype("float32"))
        assert written.temperature.encoding["complevel"] == 4
    assert printed.startswith("temperature: 5 months, mean ")
