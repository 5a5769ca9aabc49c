"""How often tasks are run again, how long they may take, and what users are told in the end."""

import os
import pickle
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from graphmill import Engine, config
from graphmill.engine import crew
from graphmill.engine.deaths import function_of
from graphmill.errors import ConfigError, TaskTimeout, WorkerDied

dask = pytest.importorskip("dask")


def die(folder, times):
    """Kill the worker so many times."""
    found = list(Path(folder).iterdir())
    if len(found) < times:
        Path(folder, str(len(found))).touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return len(found)


def fail(folder, times):
    found = list(Path(folder).iterdir())
    if len(found) < times:
        Path(folder, str(len(found))).touch()
        raise ValueError(len(found))
    return len(found)


def leave(code):
    os._exit(code)


def runs(folder):
    return len(list(folder.iterdir()))


class TestRetries:
    def test_three_by_default(self, engine, tmp_path, caplog):
        caplog.set_level("INFO", logger="graphmill")
        assert engine.get({"x": (die, str(tmp_path), 3)}, "x") == 3
        assert sum("'x' is run again" in record.message for record in caplog.records) == 3

    def test_not_four(self, engine, tmp_path):
        with pytest.raises(WorkerDied, match=r"was run 4 times"):
            engine.get({"x": (die, str(tmp_path), 9)}, "x")
        assert runs(tmp_path) == 4

    @pytest.mark.parametrize("retries", [0, 1])
    def test_as_set(self, tmp_path, retries):
        with Engine(1, retries=retries) as engine, pytest.raises(WorkerDied):
            engine.get({"x": (die, str(tmp_path), 9)}, "x")
        assert runs(tmp_path) == retries + 1

    def test_as_configured(self, tmp_path):
        with config.set(retries=0), Engine(1) as engine, pytest.raises(WorkerDied, match="run once"):
            engine.get({"x": (die, str(tmp_path), 9)}, "x")

    def test_each_task_has_its_own(self, engine, tmp_path):
        folders = [tmp_path / str(i) for i in range(4)]
        for folder in folders:
            folder.mkdir()
        dsk = {folder.name: (die, str(folder), 3) for folder in folders}
        assert engine.get(dsk, list(dsk)) == (3,) * 4

    def test_as_annotated(self, engine, tmp_path):
        with dask.annotate(retries=5):
            work = dask.delayed(die)(str(tmp_path), 5)
        assert work.compute(scheduler=engine.get) == 5

    def test_annotated_tasks_that_fail_are_run_again(self, engine, tmp_path):
        with dask.annotate(retries=2):
            work = dask.delayed(fail)(str(tmp_path), 2)
        assert work.compute(scheduler=engine.get) == 2

    def test_others_are_not(self, engine, tmp_path):
        with pytest.raises(ValueError, match="0"):
            engine.get({"x": (fail, str(tmp_path), 1)}, "x")

    def test_annotations_outlive_the_fusion_of_arrays(self, engine, tmp_path):
        da = pytest.importorskip("dask.array")

        def work(block):
            fail(str(tmp_path), 2)
            return block + 1

        with dask.annotate(retries=2):
            x = da.ones(4, chunks=4).map_blocks(work, meta=np.empty(0))
        assert (x.sum() * 2).compute(scheduler=engine.get) == 16

    def test_nonsense_is_refused(self, engine):
        with pytest.raises(ConfigError, match="retries must be a whole number"):
            Engine(1, retries=-1)
        with dask.annotate(retries=1.5):
            work = dask.delayed(abs)(-1)
        with pytest.raises(ConfigError, match=r"annotation of 'abs-.*1.5"):
            work.compute(scheduler=engine.get)


class TestWhatIsTold:
    def test_of_a_death(self, engine):
        dsk = {"big": (np.ones, 1_000), "x": (die, "/", 99)}
        dsk["x"] = (_take_and_die, "big")
        with pytest.raises(WorkerDied) as caught:
            engine.get(dsk, "x")
        error = caught.value
        text = str(error)
        assert "'x'" in text
        assert "_take_and_die" in text
        assert "signal 11, SIGSEGV" in text
        assert re.search(r"last seen with [\d,]+ MB", text)
        assert "synchronous scheduler" in text
        assert (error.key, error.signal, error.exitcode) == ("x", 11, None)
        assert error.function.endswith("_take_and_die")
        assert error.memory > 0
        assert vars(pickle.loads(pickle.dumps(error))) == vars(error)

    def test_of_an_exit(self, engine):
        with pytest.raises(WorkerDied, match=r"exit code 3\).*os._exit") as caught:
            engine.get({"x": (leave, 3)}, "x")
        assert caught.value.exitcode == 3

    def test_what_a_task_calls(self):
        from functools import partial

        from dask._task_spec import Task, TaskRef

        plain = Task("x", abs, 1)
        fused = Task.fuse(plain, Task("y", np.sum, TaskRef("x")))
        assert function_of(plain) == "abs"
        assert "abs" in function_of(fused)
        assert "numpy.sum" in function_of(fused)
        assert function_of(Task("x", partial(abs, 1))) == "abs"
        assert function_of(object()) == "no function"


def _take_and_die(x):
    time.sleep(1.5)  # memory is looked at each second, where nothing else happens
    os.kill(os.getpid(), signal.SIGSEGV)


def stuck_in_c(x):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    time.sleep(1_000)


def stubborn(x):
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(1_000)


class TestTimeout:
    @pytest.mark.parametrize("forever", [time.sleep, stuck_in_c, stubborn])
    def test_a_task_that_never_ends(self, forever):
        with Engine(2, task_timeout=0.2) as engine:
            with pytest.raises(TaskTimeout, match=r"'x', which calls .*0.2 s of its task_timeout"):
                engine.get({"x": (forever, 1_000), "y": (abs, "x")}, "y")
            assert engine.get({"x": (abs, -1)}, "x") == 1

    def test_a_task_that_can_be_interrupted_costs_no_worker(self, monkeypatch):
        monkeypatch.setattr(crew, "STOP_LIMIT", 1_000.0)  # so that none is ended, however busy the machine
        with Engine(1, task_timeout=0.2) as engine:
            pid = engine.get({"x": (os.getpid,)}, "x")
            with pytest.raises(TaskTimeout):
                engine.get({"x": (time.sleep, 1_000)}, "x")
            assert engine.get({"x": (os.getpid,)}, "x") == pid

    def test_others_go_on_meanwhile(self):
        with Engine(2, task_timeout=60) as engine:
            dsk = {("x", i): (abs, -i) for i in range(100)}
            assert engine.get(dsk, list(dsk)) == tuple(range(100))

    def test_the_start_of_a_worker_does_not_count(self, monkeypatch):
        """Time runs from when its process is there: the template may have much to import."""
        from graphmill.workers import launch

        monkeypatch.setattr(launch, "_BOOTSTRAP", "__import__('time').sleep(2); " + launch._BOOTSTRAP)
        with Engine(1, task_timeout=1) as engine:
            assert engine.get({"x": (abs, -1)}, "x") == 1

    def test_time_counts_for_each_task(self):
        with Engine(1, task_timeout=0.5) as engine:
            dsk = {("x", i): (time.sleep, 0.2) for i in range(5)}
            engine.get(dsk, list(dsk))

    def test_as_annotated(self, engine):
        with dask.annotate(task_timeout=0.2):
            work = dask.delayed(time.sleep)(1_000)
        with pytest.raises(TaskTimeout, match="sleep-"):
            work.compute(scheduler=engine.get)

    def test_an_annotation_overrides_the_setting(self):
        with dask.annotate(task_timeout=60):
            work = dask.delayed(time.sleep)(0.4)
        with config.set(task_timeout=0.1), Engine(1) as engine:
            assert work.compute(scheduler=engine.get) is None

    def test_it_is_run_again_where_that_is_annotated(self, engine, tmp_path):
        def slow_at_first():
            if not runs(tmp_path):
                (tmp_path / "begun").touch()
                time.sleep(1_000)
            return "done"

        with dask.annotate(task_timeout=1.5, retries=1):
            work = dask.delayed(slow_at_first)()
        assert work.compute(scheduler=engine.get) == "done"

    def test_a_worker_that_stands_still(self):
        with Engine(2, task_timeout=0.3) as engine:
            with pytest.raises(TaskTimeout):
                engine.get({"x": (_stop,)}, "x")
            assert engine.get({"x": (abs, -1)}, "x") == 1

    @pytest.mark.parametrize("timeout", [0, -1, True, float("nan")])
    def test_nonsense_is_refused(self, timeout):
        with pytest.raises(ConfigError, match="task_timeout must be a number of seconds above 0"):
            Engine(1, task_timeout=timeout)


def _stop():
    os.kill(os.getpid(), signal.SIGSTOP)
