"""Chunks of Zarr on disk are read again where that is quicker than to move them; and only those."""

import gc
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest
import zarr
from dask.callbacks import Callback

from benchmarks.families import capture
from graphmill import config
from graphmill.engine import Engine
from graphmill.engine.blocks import Blocks
from graphmill.engine.rereading import Rereading
from graphmill.engine.staying import find_targets
from graphmill.graph import read_graph
from graphmill.scheduler.estimates import Estimates
from tests.engine.conftest import traces

MB = 1 << 20


@pytest.fixture
def store(tmp_path):
    """A Zarr array of 24 chunks of 8 MB."""
    path = str(tmp_path / "x.zarr")
    array = zarr.open_array(path, mode="w", shape=(24, MB), chunks=(1, MB), dtype="f8")
    array[:] = np.arange(24)[:, None] + np.arange(MB) % 7
    return path


def graph_of(*collections):
    """Read what Dask gives a scheduler for collections."""
    return read_graph(*capture(collections))


def better(graph, *, seconds=0.01, speed=100e6):
    """Name the layers of which some values are better read again."""
    estimates = Estimates()
    for key in graph.tasks:
        estimates.learn(key, seconds, 8 * MB)
    blocks = SimpleNamespace(spill_speed=speed)
    again = Rereading(graph, find_targets(graph).elsewhere, estimates, blocks)
    return {key[0].partition("-")[0] for key in graph.tasks if again(key)}


def sums(x):
    return ((x - x.mean()) ** 2).sum()


def test_chunks_of_zarr_on_disk_are_read_again(store):
    assert better(graph_of(sums(da.from_zarr(store)))) == {"from"}


@pytest.mark.parametrize("options", [{"seconds": 0.2}, {"speed": 5e9}, {"speed": None}])
def test_not_where_it_takes_longer_or_nobody_knows(store, options):
    assert better(graph_of(sums(da.from_zarr(store))), **options) == set()


def test_what_is_not_on_disk_is_not_read_again():
    memory = zarr.create_array({}, shape=(4, MB), chunks=(1, MB), dtype="f8")
    for x in (da.from_array(memory), da.from_array(np.ones((4, MB)), chunks=(1, MB)), da.ones((4, MB))):
        assert better(graph_of(sums(x))) == set()


def test_not_what_tasks_write_to(store, tmp_path):
    x = da.from_zarr(store)
    changed = x + x.mean()
    elsewhere = changed.to_zarr(str(tmp_path / "y.zarr"), compute=False)
    assert better(graph_of(elsewhere)) == {"from"}
    there = changed.store(zarr.open_array(store, mode="r+"), lock=False, compute=False)
    assert better(graph_of(there)) == set()


@pytest.mark.parametrize("allowed", [True, False])
def test_an_engine_reads_again_what_does_not_fit(store, monkeypatch, allowed):
    monkeypatch.setattr(Blocks, "spill_speed", property(lambda _: 1.0))
    before = traces()
    x = da.from_zarr(store)
    expected = float(sums(x).compute(scheduler="synchronous"))
    with Engine(2) as engine:
        x[:2].sum().compute(scheduler=engine.get)
        taken = engine.memory().private
    read = []
    count = Callback(posttask=lambda key, *_: read.append(key) if key[0].startswith("from-zarr") else None)
    with Engine(2, memory_limit=taken + 130 * MB) as engine, config.set(recompute=allowed), count:
        assert float(sums(x).compute(scheduler=engine.get)) == pytest.approx(expected, rel=1e-12)
        use = engine.memory()
        assert use.live == 0
        assert use.peak <= 1.05 * use.limit
    assert len(set(read)) == 24
    if allowed:
        assert 24 < len(read) <= 48, "once more each, at most"
    else:
        assert len(read) == 24
        assert use.spilled >= 24 * 8 * MB - 130 * MB
    gc.collect()
    assert traces() == before
