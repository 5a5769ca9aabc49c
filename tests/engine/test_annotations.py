"""Dask's annotations on one machine: priority and executor."""

import os
import threading
import time

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
    ran = path.read_text()
    assert sorted(ran) == sorted("iiifff" + "u" * 6 + "l" * 6)
    # A worker has one task more at hand than it runs: of what waits then, it is the best.
    assert ran.startswith("iii")
    assert ran.rindex("f") <= len("iiifff")
    assert ran.index("l") >= len("iiifff") + 5


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


class Together:
    """Tasks that note how many of them run at once."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def __call__(self, n):
        mine = self.folder / f"{n}"
        mine.touch()
        time.sleep(0.05)
        found = sum(not path.name.startswith("n") for path in self.folder.iterdir())
        mine.rename(self.folder / f"n{n}")
        return found


def test_resources_limit_how_many_run_at_once(tmp_path):
    few, usual = Together(tmp_path / "few"), Together(tmp_path / "usual")
    with dask.annotate(resources={"gpu": 1}):
        limited = [dask.delayed(few, pure=False)(n) for n in range(6)]
    others = [dask.delayed(usual, pure=False)(n) for n in range(6)]
    with graphmill.Engine(3, resources={"gpu": 1}) as engine:
        found, rest = dask.compute(limited, others, scheduler=engine.get, optimize_graph=False)
    assert found == [1] * 6
    assert max(rest) >= 2


def test_amounts_add_up(tmp_path):
    together = Together(tmp_path / "all")
    with dask.annotate(resources={"memory": 2}):
        tasks = [dask.delayed(together, pure=False)(n) for n in range(8)]
    with graphmill.Engine(4, resources={"memory": 5, "gpu": 0}) as engine:
        found = dask.compute(*tasks, scheduler=engine.get, optimize_graph=False)
    assert max(found) <= 2


def test_graphs_share_resources(tmp_path):
    together = Together(tmp_path / "all")
    found = []

    def work(first):
        with dask.annotate(resources={"gpu": 1}):
            tasks = [dask.delayed(together, pure=False)(first + n) for n in range(4)]
        found.extend(dask.compute(*tasks, scheduler=engine.get, optimize_graph=False))

    with graphmill.Engine(3, resources={"gpu": 1}) as engine:
        threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [1] * 12


def test_what_a_lost_task_had_is_free_again(tmp_path):
    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), 9)
        return 1

    with dask.annotate(resources={"gpu": 1}):
        tasks = [dask.delayed(die_once)(), dask.delayed(abs)(-2)]
    with graphmill.Engine(2, resources={"gpu": 1}) as engine:
        assert dask.compute(*tasks, scheduler=engine.get, optimize_graph=False) == (1, 2)


def test_more_than_there_is(engine):
    with dask.annotate(resources={"gpu": 2}):
        task = dask.delayed(abs)(1)
    with pytest.raises(ConfigError, match=r"needs 2 of 'gpu', and the engine has 0: Engine\(resources="):
        task.compute(scheduler=engine.get, optimize_graph=False)


@pytest.mark.parametrize("resources", [{"gpu": -1}, {"gpu": "one"}, {1: 1}, ["gpu"]])
def test_resources_are_names_with_amounts(resources):
    with pytest.raises(ConfigError, match="names with amounts"):
        graphmill.Engine(1, resources=resources)
