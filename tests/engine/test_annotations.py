"""Dask's annotations on one machine: priority and executor."""

import os

import pytest

import graphmill
from graphmill.errors import ConfigError

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


def note(path, name, *_):
    with path.open("a") as file:
        file.write(name)
    return name


def test_priority_decides_which_runs_first(tmp_path):
    path = tmp_path / "order"
    task = dask.delayed(note, pure=False)
    usual = [task(path, "u") for _ in range(6)]
    with dask.annotate(priority=-1):
        late = [task(path, "l") for _ in range(6)]
    with dask.annotate(priority=10):
        inputs = [task(path, "i") for _ in range(3)]
        first = [task(path, "f", *inputs) for _ in range(3)]
    with graphmill.Engine(1) as engine:
        dask.compute(usual, late, first, scheduler=engine.get, optimize_graph=False)
    assert path.read_text() == "iiifff" + "u" * 6 + "l" * 6


def test_priority_holds_for_arrays_whose_tasks_are_fused(tmp_path):
    path = tmp_path / "order"

    def mark(block, name):
        note(path, name)
        return block

    x = da.ones(6, chunks=1).map_blocks(mark, "u", dtype=float, meta=da.ones(1)._meta)
    with dask.annotate(priority=3):
        y = da.zeros(6, chunks=1).map_blocks(mark, "f", dtype=float, meta=da.ones(1)._meta)
    with graphmill.Engine(1) as engine:
        dask.compute(x, y, scheduler=engine.get)
    assert path.read_text() == "f" * 6 + "u" * 6


@pytest.mark.parametrize(
    ("executor", "here"), [("caller", True), ("threads", True), ("default", False), ("processes", False)]
)
def test_executor_decides_where(engine, executor, here):
    with dask.annotate(executor=executor):
        pid = dask.delayed(os.getpid)()
    assert (pid.compute(scheduler=engine.get, optimize_graph=False) == os.getpid()) is here


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"executor": "gpu"}, "'caller', 'threads' for the calling process"),
        ({"priority": 1j}, "priority must be a number, but the annotation of"),
        ({"priority": float("nan")}, "priority must be a number"),
    ],
)
def test_what_nobody_can_mean(engine, annotation, message):
    with dask.annotate(**annotation):
        task = dask.delayed(abs)(1)
    with pytest.raises(ConfigError, match=message):
        task.compute(scheduler=engine.get, optimize_graph=False)
