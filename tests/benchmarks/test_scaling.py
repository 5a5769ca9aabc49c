"""Pretended workers do what real ones do, as far as the engine can see, and their clock adds up."""

import pytest

pytest.importorskip("dask")

from benchmarks import scaling
from benchmarks.pretended import Pretended, Ranges, pretend, pretended_engine
from benchmarks.scaling import BLOCK, rows, run, stencil
from graphmill.local import get_sync


def test_results_come_from_the_tasks():
    engine, _ = pretended_engine(2)
    with engine:
        dsk = {"x": (pretend, 1.0, 0), "y": (pretend, 1.0, 5000, "x")}
        found = engine.get(dsk, ["x", "y"])
    # What a worker answers with is the size of the result.
    assert found == (0, 5000)
    assert get_sync(dsk, "y") == Pretended(1.0, 5000)


def test_long_tasks_take_as_long_as_they_say_and_workers_share_them():
    count, seconds = 32, 100.0
    dsk = {("x", i): (pretend, seconds, 0) for i in range(count)}
    dsk["end"] = (pretend, 0.0, 0, list(dsk))
    for workers in (1, 4, 8):
        found = run((dsk, "end"), workers)
        assert found.worked == count * seconds
        # All that is not the tasks is less than a thousandth of them.
        assert count * seconds / workers < found.makespan < 1.001 * count * seconds / workers + 1
        assert 0.99 < found.efficiency <= 1


def test_the_parent_bounds_what_many_workers_do():
    found = run(rows(600, 1e-6), 16)
    assert found.parent > 0
    assert found.makespan > found.planning > 0
    # No more tasks for each second than the parent can hand out.
    assert found.rate <= found.tasks / (found.parent - found.planning) * 1.001
    assert found.busy <= 1.001


def test_blocks_are_live_as_long_as_they_are_needed():
    few, more = (run(stencil(40, 1.0), workers) for workers in (1, 4))
    # A stencil holds three blocks and makes one.
    assert 4 * BLOCK <= few.live <= 6 * BLOCK
    assert few.live < more.live <= 40 * BLOCK


def test_ranges_are_used_again():
    ranges = Ranges(7)
    first, second = ranges.take(5000), ranges.take(5000)
    assert (first.arena, first.length, second.block) == (7, 8192, 8192)
    ranges.give_back(first.block, first.length)
    assert ranges.take(6000).block == first.block
    assert ranges.take(6000).block == 16384


def test_tables_are_printed(capsys, monkeypatch):
    monkeypatch.setattr(scaling, "SECONDS", (0.001,))
    assert scaling.main(["--small", "throughput", "memory"]) == 0
    out = capsys.readouterr().out
    assert "| 64 " in out
    assert "blocks live at most" in out


def test_unknown_parts_are_told(capsys):
    with pytest.raises(SystemExit):
        scaling.main(["speed"])
    assert "choose from throughput, size, memory" in capsys.readouterr().err
