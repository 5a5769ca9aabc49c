"""Each workload can tell a right answer from a wrong one, and its data are the same each time."""

from types import SimpleNamespace

import numpy as np
import pytest

dask = pytest.importorskip("dask")
zarr = pytest.importorskip("zarr")
pytest.importorskip("scipy")

from benchmarks.known import KnownArray  # noqa: E402 - only where those are
from benchmarks.workload import keep  # noqa: E402
from benchmarks.workloads import WORKLOADS  # noqa: E402

#: One map of the cube is one chunk.
SIZES = SimpleNamespace(banded=1000, chunk=720 * 1440 * 4, days=5, square=1500, tall=20_000)


@pytest.fixture(params=WORKLOADS)
def computed(request, tmp_path):
    """Compute a workload on little data; give it and where its results are."""
    workload = WORKLOADS[request.param](SIZES, tmp_path / "data")
    workload.make()
    output = tmp_path / "output"
    output.mkdir()
    keep(dask.compute(*workload.collections(output), scheduler="sync"), output)
    return workload, output


def test_answers_are_checked(computed):
    workload, output = computed
    assert workload.mistake(output) is None
    results = sorted(output.iterdir())
    assert results
    for path in results:
        spoilt = spoil(path)
        assert workload.mistake(output) is not None
        spoilt()
        assert workload.mistake(output) is None


def spoil(path):
    """Change one element that was stored; give what takes it back."""
    stored = zarr.open_array(str(path)) if path.suffix == ".zarr" else np.load(path)
    last = (-1,) * stored.ndim
    right = stored[last]

    def change(value):
        stored[last] = value
        if path.suffix == ".npy":
            np.save(path, stored)

    change(right + 1)
    return lambda: change(right)


def test_parts_of_known_arrays_are_parts_of_the_whole(tmp_path):
    known = KnownArray("x", (50, 40, 30), (20, 40, 15), "f8")
    whole = known.elements((slice(None),) * 3)
    assert whole.shape == known.shape
    assert len(np.unique(whole)) > 4000
    part = (slice(20, 40), slice(None), slice(15, 30))
    assert np.array_equal(known.elements(part), whole[part])
    assert np.array_equal(zarr.open_array(str(known.make(tmp_path)), mode="r")[:], whole)
    assert not np.array_equal(
        KnownArray("x", known.shape, known.chunks, "f8", seed=1).elements(part), whole[part]
    )


def test_unfinished_data_are_made_again(tmp_path, monkeypatch):
    known = KnownArray("x", (50, 40), (20, 40), "f4")
    with monkeypatch.context() as patch:
        patch.setattr(KnownArray, "elements", lambda self, where: {}["out of memory"])
        with pytest.raises(KeyError):
            known.make(tmp_path)
    store = known.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [store.name]
