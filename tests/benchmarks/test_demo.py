"""The demonstration runs, and each example gives the same with graphmill as with threads."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

zarr = pytest.importorskip("zarr")
pytest.importorskip("dask.array")
pytest.importorskip("rich")

from benchmarks import demo  # noqa: E402 - only where those are
from benchmarks.cube import CHUNK, Cube, make_cube  # noqa: E402
from benchmarks.footprint import PROC  # noqa: E402

TINY = Cube.of(0.003, 60, 90)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_cube(tmp_path_factory.mktemp("data"), TINY)


@pytest.mark.parametrize("example", demo.EXAMPLES)
def test_results_agree_and_figures_are_there(example, store, capsys):
    given = demo.arguments(["--example", example, "--workers", "2", "--repeats", "1"])
    outcome = demo.Demo(store.parent, given.example, given.workers, given.repeats, demo.Console()).run(TINY)
    assert outcome.agree
    for scheduler in demo.SCHEDULERS:
        (run,) = outcome.runs[scheduler]
        assert run.seconds > 0
        if PROC.is_dir():
            assert run.peak.private > 0
    if PROC.is_dir():
        assert outcome.runs["threads"][0].peak.arenas == 0
    assert "Error" not in capsys.readouterr().out
    assert [path.name for path in store.parent.iterdir()] == [TINY.name]


def test_the_whole_of_it(tmp_path):
    environment = {**os.environ, "DEMO_FOLDER": str(tmp_path), "COLUMNS": "80"}
    command = [sys.executable, "-m", "benchmarks.demo", "--quick", "--gigabytes", "0.01", "--workers", "2"]
    run = subprocess.run(
        command, cwd=demo.ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "The results are identical." in run.stdout
    assert "graphmill / threads" in run.stdout
    assert [path.suffix for path in tmp_path.iterdir()] == [".zarr"]


def test_results_that_differ_are_found(tmp_path):
    values = np.arange(100, dtype="f4").reshape(10, 10)
    other = values.copy()
    other[7, 3] += 0.5
    strange = values.copy()
    strange[0, 0] = np.nan
    for name, data in {"a": values, "b": values, "c": other, "d": strange}.items():
        zarr.create_array(str(tmp_path / name), data=data, chunks=(3, 10))
    assert demo.compare(tmp_path / "a", tmp_path / "b") == (0, True)
    assert demo.compare(tmp_path / "a", tmp_path / "c") == (0.5, False)
    assert not demo.compare(tmp_path / "a", tmp_path / "d")[1]
    assert not demo.compare(tmp_path / "d", tmp_path / "d")[1]


def test_a_failing_example_is_told(store, monkeypatch, capsys):
    monkeypatch.setenv("DEMO_FOLDER", str(store.parent))
    monkeypatch.setattr(demo, "GRID", (60, 90))
    monkeypatch.setattr(demo, "ROOT", Path("/nowhere"))
    assert demo.main(["--gigabytes", "0.003"]) == 1
    assert "/nowhere/examples/anomaly.py" in capsys.readouterr().out


def test_a_store_is_made_once_and_its_data_varies(store, tmp_path):
    data = zarr.open_array(str(store), mode="r")
    assert data.shape == (TINY.days, 60, 90)
    assert data.chunks == (CHUNK, 60, 90)
    values = data[:]
    assert values.dtype == np.float32
    assert (values.std(axis=0) > 1).all()
    before = store.stat().st_mtime_ns
    assert make_cube(store.parent, TINY) == store
    assert store.stat().st_mtime_ns == before
    np.testing.assert_array_equal(zarr.open_array(str(make_cube(tmp_path, TINY)), mode="r")[:], values)


def test_a_store_that_was_cut_short_is_made_again(tmp_path):
    def tell(nbytes):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_cube(tmp_path, TINY, tell)
    store = make_cube(tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == [TINY.name]
    assert zarr.open_array(str(store), mode="r")[-1].all()
