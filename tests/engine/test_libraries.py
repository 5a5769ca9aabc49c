"""The engine under the libraries that scientists use it with."""

import numpy as np
import pytest

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


def squares():
    return da.from_array(np.arange(64.0).reshape(8, 8), chunks=3)


def test_hdf5(engine, tmp_path):
    h5py = pytest.importorskip("h5py")
    x = squares()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        target = file.create_dataset("x", shape=x.shape, dtype="f8")
        da.store(x + 1, target, scheduler=engine.get)
        assert (target[:] == np.arange(64.0).reshape(8, 8) + 1).all()
        again = da.from_array(target, chunks=3)
        assert float(again.sum().compute(scheduler=engine.get)) == 64 * 63 / 2 + 64


@pytest.mark.parametrize("backend", ["h5netcdf", "netcdf4"])
def test_netcdf(engine, tmp_path, backend):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(backend, backend))
    data = xarray.DataArray(np.arange(12.0).reshape(3, 4), dims=("t", "x"), name="v").to_dataset()
    data.to_netcdf(tmp_path / "in.nc", engine=backend)
    with (
        xarray.open_dataset(tmp_path / "in.nc", chunks={"t": 1}, engine=backend) as source,
        dask.config.set(scheduler=engine.get),
    ):
        (source + 1).to_netcdf(tmp_path / "out.nc", engine=backend)
    with xarray.open_dataset(tmp_path / "out.nc", engine=backend) as found:
        assert (found["v"].values == np.arange(12.0).reshape(3, 4) + 1).all()


def test_bag_and_delayed(engine):
    bag = pytest.importorskip("dask.bag")
    counted = bag.from_sequence(range(100), npartitions=5).map(lambda i: i % 7).frequencies()
    assert dict(counted.compute(scheduler=engine.get))[0] == 15
    grouped = bag.from_sequence(["a", "bb", "cc"], npartitions=2).groupby(len)
    assert sorted((k, sorted(v)) for k, v in grouped.compute(scheduler=engine.get)) == [
        (1, ["a"]),
        (2, ["bb", "cc"]),
    ]
    total = dask.delayed(sum)([dask.delayed(abs)(-i) for i in range(10)])
    assert total.compute(scheduler=engine.get) == 45


def test_a_quoted_value_comes_back_as_the_object_that_it_was(engine):
    value = [object(), (abs, -1)]
    assert dask.delayed(value, traverse=False).compute(scheduler=engine.get) is value


def test_dataframe(engine):
    dd = pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": range(1000), "b": [str(i % 5) for i in range(1000)]})
    found = dd.from_pandas(frame, npartitions=4).groupby("b").a.sum().compute(scheduler=engine.get)
    assert found.sort_index().tolist() == frame.groupby("b").a.sum().tolist()


def test_persist(engine):
    x = (squares() + 1).persist(scheduler=engine.get)
    assert float(x.sum().compute(scheduler=engine.get)) == 64 * 63 / 2 + 64


def test_cache_and_profilers(engine):
    pytest.importorskip("cachey")
    from dask.cache import Cache
    from dask.diagnostics import CacheProfiler, ResourceProfiler

    total = (squares() + 1).sum()
    with Cache(1e8, limit=0) as cache:
        first = total.compute(scheduler=engine.get)
        assert cache.cache.data
        assert total.compute(scheduler=engine.get) == first
    with CacheProfiler() as cached, ResourceProfiler(dt=0.01):
        total.compute(scheduler=engine.get)
    assert len(cached.results) >= 9
