"""A trace says what a run did to memory, whichever scheduler ran it."""

import tempfile

import numpy as np
import pytest

dask_array = pytest.importorskip("dask.array")

import dask.threaded  # noqa: E402 - only where Dask is

from benchmarks.belady import optimum, tell  # noqa: E402
from benchmarks.trace import Finished, Recorder, Released, Started, read, write  # noqa: E402
from graphmill import Engine  # noqa: E402
from graphmill.local import get_sync  # noqa: E402


@pytest.fixture(scope="module", params=["threads", "in one thread", "graphmill"])
def get(request):
    if request.param == "threads":
        yield dask.threaded.get
    elif request.param == "in one thread":
        yield get_sync
    else:
        with Engine(2) as engine:
            yield engine.get


def recorded(get, dsk, key):
    """Record a run of a graph."""
    with Recorder() as recorder:
        get(dsk, key)
    return recorder.events


def test_blocks_and_their_ends(get):
    size = 1_000_000
    dsk = {
        "a": (np.ones, size),
        "b": (np.add, "a", 1.0),
        "c": (np.add, "a", "b"),
        "sum": (np.sum, "c"),
    }
    events = recorded(get, dsk, "sum")
    kinds = [(type(event), event.key.strip("'")) for event in events]
    assert kinds == [
        (Started, "a"),
        (Finished, "a"),
        (Started, "b"),
        (Finished, "b"),
        (Started, "c"),
        (Finished, "c"),
        (Released, "a"),
        (Released, "b"),
        (Started, "sum"),
        (Finished, "sum"),
        (Released, "c"),
    ]
    sizes = [sum(event.blocks.values()) for event in events if type(event) is Finished]
    assert sizes[:3] == pytest.approx([8 * size] * 3, rel=0.01)
    assert sizes[3] < 10_000
    assert events[4].inputs == ("'a'", "'b'")


def test_a_view_lies_in_the_block_of_its_source(get):
    dsk = {"a": (np.ones, 1_000_000), "view": (np.reshape, "a", (1000, 1000)), "sum": (np.sum, "view")}
    events = recorded(get, dsk, "sum")
    whole, view = [event.blocks for event in events if type(event) is Finished and event.blocks][:2]
    assert whole == view


def test_a_block_keeps_its_name_where_it_moves():
    block = 8 << 20
    dsk = {("a", i): (np.ones, block // 8) for i in range(40)}
    dsk["sum"] = (len, list(dsk))
    with Engine(2) as engine:
        engine.get(dsk, ("a", 0))
        taken = engine.memory().private
    with Engine(2, memory_limit=taken + (150 << 20), spill_folder=tempfile.gettempdir()) as engine:
        events = recorded(engine.get, dsk, "sum")
        assert engine.memory().spilled > 10 * block
    names = [name for event in events if type(event) is Finished for name in event.blocks]
    assert len(set(names)) >= 40, "what lies where another was is another block"
    assert optimum(events, 100 << 20).spilled >= 40 * block - (100 << 20)


def test_a_trace_comes_back_from_its_file(get, tmp_path):
    x = dask_array.ones((400, 400), chunks=200)
    with Recorder() as recorder:
        (x + x.T).sum().compute(scheduler=get)
    path = tmp_path / "trace.jsonl"
    write(recorder.events, path)
    assert read(path) == recorder.events
    assert tell(read(path)).needs
