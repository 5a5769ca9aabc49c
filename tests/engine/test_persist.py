"""Collections whose chunks stay in shared memory."""

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest

import graphmill
from graphmill.engine.stored import Stored
from tests.engine.conftest import limit_beyond

da = pytest.importorskip("dask.array")

SHAPE, CHUNKS = (2000, 1000), (500, 500)
NBYTES = 2000 * 1000 * 8


@pytest.fixture
def reads(tmp_path):
    """An array whose chunks count how often they are read."""
    return Reads(tmp_path)


class Reads:
    def __init__(self, folder):
        self.folder = folder

    def array(self, shape=SHAPE, chunks=CHUNKS):
        folder = self.folder

        def read(block_info=None):
            location = block_info[None]["chunk-location"]
            with (folder / "-".join(map(str, location))).open("a") as file:
                file.write("x")
            return np.full(block_info[None]["chunk-shape"], location[0] + 10.0 * location[1])

        whole = da.core.normalize_chunks(chunks, shape, dtype=float)
        return da.map_blocks(read, chunks=whole, dtype=float, meta=np.empty((0, 0)))

    @property
    def count(self):
        return sum(len(path.read_text()) for path in self.folder.iterdir())


def ones():
    """An array whose chunks take as much memory as they show, unlike those of Dask's own function."""
    return da.ones(SHAPE, chunks=CHUNKS).map_blocks(np.array)


def handles():
    gc.collect()
    return sum(type(each) is Stored for each in gc.get_objects())


def test_later_computations_read_nothing_and_copy_nothing(engine, reads):
    expected = reads.array().compute(scheduler="sync")
    before = reads.count
    x = reads.array().persist(scheduler=engine.get)
    assert reads.count - before == 8
    used = engine.memory()
    assert NBYTES <= used.live < 1.02 * NBYTES
    assert float(x.mean().compute(scheduler=engine.get)) == pytest.approx(expected.mean())
    assert float(x.std().compute(scheduler=engine.get)) == pytest.approx(expected.std())
    assert reads.count - before == 8
    after = engine.memory()
    assert after.copied == used.copied
    assert after.live == used.live
    # No second copy of any block was ever there: what the two computed is small.
    assert after.peak_live < used.peak_live + NBYTES / 8
    del x
    assert engine.memory().live == 0
    assert handles() == 0


def test_the_default_engine_persists(reads):
    x = reads.array().persist(scheduler=graphmill.get)
    assert float((x + 1).sum().compute(scheduler=graphmill.get)) > NBYTES / 8
    assert reads.count == 8
    with dask.config.set(scheduler=graphmill.get):
        assert float(x.sum().compute()) == float(x.persist().sum().compute())
    assert reads.count == 8
    graphmill.engine._defaults.pop(os.getpid()).engine.close()


def test_chunks_are_those_of_the_array(engine):
    data = np.arange(NBYTES // 8).reshape(SHAPE).astype(float)
    x = da.from_array(data, CHUNKS).persist(scheduler=engine.get)
    np.testing.assert_array_equal(x.compute(scheduler=engine.get), data)
    np.testing.assert_array_equal(x[10:20, ::7].compute(scheduler=engine.get), data[10:20, ::7])
    np.testing.assert_array_equal(x.blocks[1, 1].compute(scheduler=engine.get), data[500:1000, 500:])
    np.testing.assert_array_equal(x.T.rechunk(300).compute(scheduler=engine.get), data.T)


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_other_schedulers_can_use_it(engine, scheduler):
    x = ones().persist(scheduler=engine.get)
    with ThreadPoolExecutor(2) as pool, dask.config.set(pool=pool):
        assert float((x + x).sum().compute(scheduler=scheduler)) == NBYTES / 4
        assert x.compute(scheduler=scheduler).shape == SHAPE


def test_another_engine_can_use_it(engine):
    x = ones().persist(scheduler=engine.get)
    with graphmill.Engine(1) as other:
        assert float((x + 1).sum().compute(scheduler=other.get)) == NBYTES / 4


def test_it_pickles_with_its_values(engine):
    x = da.arange(1000, chunks=100).persist(scheduler=engine.get)
    y = ones().persist(scheduler=engine.get)
    again = pickle.loads(pickle.dumps((x, y)))
    assert int(again[0].sum().compute(scheduler="sync")) == 499_500
    assert float(again[1].sum().compute(scheduler="sync")) == NBYTES / 8


def test_it_outlives_its_engine():
    with graphmill.Engine(1) as engine:
        x = ones().persist(scheduler=engine.get)
    assert float(x.sum().compute(scheduler="sync")) == NBYTES / 8
    with graphmill.Engine(1) as other:
        assert float(x.sum().compute(scheduler=other.get)) == NBYTES / 8


def test_several_collections_share_work(engine, reads):
    x = reads.array()
    y, z = dask.persist(x + 1, x.sum(axis=0), scheduler=engine.get)
    assert reads.count == 8
    total, mean = dask.compute(y.sum(), z.mean(), scheduler=engine.get)
    assert reads.count == 8
    assert total == pytest.approx(float(z.sum().compute(scheduler=engine.get)) + NBYTES / 8)
    assert mean == pytest.approx((total - NBYTES / 8) / 1000)


def test_engine_persist_takes_one_or_several(engine):
    x = engine.persist(da.ones(10))
    assert isinstance(x, da.Array)
    y, z = engine.persist([da.ones(10), da.zeros(10)], num_workers=1)
    assert float((x + y + z).sum().compute(scheduler=engine.get)) == 20


def test_what_was_made_of_it_keeps_what_it_needs(engine):
    x = ones().persist(scheduler=engine.get)
    y = x.blocks[0, 0] + 1
    del x
    assert float(y.sum().compute(scheduler=engine.get)) == 500 * 500 * 2
    del y
    gc.collect()
    assert engine.memory().live == 0


def test_tasks_may_change_their_inputs(engine):
    def spoil(block):
        block[:] = 7
        return block.sum(keepdims=True)

    x = ones().persist(scheduler=engine.get)
    assert float(x.map_blocks(spoil, chunks=(1, 1)).sum().compute(scheduler=engine.get)) == 7 * NBYTES / 8
    assert float(x.sum().compute(scheduler=engine.get)) == NBYTES / 8
    one = x.blocks[0, 0].compute(scheduler=engine.get)
    one[:] = 9
    assert float(x.sum().compute(scheduler=engine.get)) == NBYTES / 8


def test_a_chunk_that_is_looked_at_stays_where_it_is(engine):
    x = da.ones((500, 500), chunks=500).persist(scheduler=engine.get)
    array = x.compute(scheduler=engine.get)
    del x
    gc.collect()
    assert engine.memory().live >= array.nbytes
    assert array.sum() == 250_000
    del array
    assert engine.memory().live == 0


def test_bags_frames_and_delayed_values(engine):
    import dask.bag as db

    bag = db.from_sequence(range(100), npartitions=4).map(lambda n: n * 2).persist(scheduler=engine.get)
    assert bag.sum().compute(scheduler=engine.get) == 9900
    value = dask.delayed(np.ones)(100_000).persist(scheduler=engine.get)
    assert dask.delayed(np.sum)(value).compute(scheduler=engine.get) == 100_000
    pandas = pytest.importorskip("pandas")
    import dask.dataframe as dd

    frame = pandas.DataFrame({"a": np.arange(100_000), "b": np.arange(100_000) % 7})
    kept = dd.from_pandas(frame, npartitions=3).persist(scheduler=engine.get)
    assert int(kept.a.sum().compute(scheduler=engine.get)) == int(frame.a.sum())
    grouped = kept.groupby("b").a.sum().compute(scheduler=engine.get).sort_index()
    pandas.testing.assert_series_equal(grouped, frame.groupby("b").a.sum(), check_index_type=False)


def test_what_does_not_fit_goes_to_disk():
    limit = limit_beyond(350 << 20, workers=2)
    with graphmill.Engine(2, memory_limit=limit) as engine:
        x = da.random.default_rng(1).random((16_000, 5000), chunks=(1000, 5000)).persist(scheduler=engine.get)
        assert engine.memory().on_disk > 0
        first = float(x.mean().compute(scheduler=engine.get))
        std = float(x.std().compute(scheduler=engine.get))
        assert first == pytest.approx(0.5, abs=0.01)
        assert std == pytest.approx(1 / 12**0.5, abs=0.01)
        assert float(x.mean().compute(scheduler=engine.get)) == first
        assert engine.memory().peak <= limit
        del x
        gc.collect()
        used = engine.memory()
        assert (used.live, used.on_disk) == (0, 0)


def test_values_that_cannot_be_sent_stay_here(engine):
    import threading

    here = threading.Lock()
    lock = dask.delayed(here).persist(scheduler=engine.get)
    assert lock.compute(scheduler=engine.get) is here


def test_it_works_within_a_task(engine):
    def nested():
        x = da.ones(1000, chunks=100).persist(scheduler=graphmill.get)
        return float(x.sum().compute(scheduler=graphmill.get))

    assert dask.delayed(nested)().compute(scheduler=engine.get) == 1000


def test_get_pickles_by_name():
    assert pickle.loads(pickle.dumps(graphmill.get)) == graphmill.get
