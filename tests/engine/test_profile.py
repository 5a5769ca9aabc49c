"""Recording what engines do."""

import gc
import json
from operator import add

import numpy as np
import pytest

import graphmill
from graphmill.diagnostics.recorder import Recorder
from graphmill.engine import Engine
from graphmill.errors import NotRecorded

BIG = 200_000
SUM = {("x-1", i): (np.full, BIG, i) for i in range(3)} | {"y-2": (sum, [("x-1", i) for i in range(3)])}


def test_all_runs_within_are_recorded(engine, tmp_path):
    with graphmill.profile() as p:
        engine.get(SUM, "y-2")
        engine.get({"z": (add, 1, 2)}, "z")
    engine.get({"later": (add, 1, 2)}, "later")
    assert sorted(task.kind for task in p.tasks) == ["x", "x", "x", "y", "z"]
    assert {task.run for task in p.tasks} == {0, 1}
    assert all(0 <= task.start <= task.end for task in p.tasks)
    assert len(p.memory) >= 2
    assert 0 < p.memory[0].private <= p.memory[0].limit
    assert not p.spills
    assert not p.deaths
    (summary,) = p.summaries
    assert summary.tasks == 5
    assert summary.born_in_place >= 4 * BIG * 8
    p.trace(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_nothing_recorded_is_an_error(engine, tmp_path):
    with graphmill.profile() as p:
        pass
    for write in (p.report, p.trace):
        with pytest.raises(NotRecorded, match=r"graphmill.profile"):
            write(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_engines_report_is_of_what_was_recorded(engine, tmp_path):
    engine.recorder = None
    with pytest.raises(NotRecorded, match="record=True"):
        engine.report(tmp_path / "out.html")
    with graphmill.profile() as p:
        engine.get(SUM, "y-2")
    assert engine.recorder().recordings(engine) == p.recordings
    del p
    gc.collect()
    with pytest.raises(NotRecorded, match="record=True"):
        engine.report(tmp_path / "out.html")


def test_an_engine_that_records():
    with Engine(1, record=True) as engine:
        engine.get(SUM, "y-2")
        engine.get(SUM, "y-2")
        recorder = engine.recorder()
    (recording,) = recorder.recorded(engine)
    assert [task.run for task in recording.tasks if task.kind == "y"] == [0, 1]


def test_the_oldest_runs_are_forgotten(engine):
    recorder = Recorder(most_tasks=5)
    engine.watchers.append(recorder)
    try:
        for _ in range(3):
            engine.get(SUM, "y-2")
    finally:
        engine.watchers.remove(recorder)
        recorder.close()
    (recording,) = recorder.recordings()
    assert len(recording.tasks) == 8


def test_the_default_engine_is_watched_too(script, tmp_path):
    source = f"""
import io, json, sys, threading
import graphmill
from graphmill.diagnostics import dashboard, progress

dsk = {{("x-1", i): (abs, -i) for i in range(50)}} | {{"y": (sum, [("x-1", i) for i in range(50)])}}
shown = io.StringIO()
with graphmill.profile() as p, progress(shown) as bar, dashboard() as page:
    assert graphmill.get(dsk, "y", num_workers=2) == 1225
assert len(p.tasks) == 51, len(p.tasks)
assert (bar.picture.done, bar.picture.total) == (51, 51)
assert shown.getvalue().startswith("graphmill: 51 tasks in "), shown.getvalue()
assert threading.active_count() == 1, threading.enumerate()
p.report({str(tmp_path / "report.html")!r})
assert "bokeh" in sys.modules
"""
    script(source)
    assert "51" in (tmp_path / "report.html").read_text()


def test_nothing_is_loaded_that_nobody_asked_for(script):
    script("""
import sys
import graphmill
graphmill.Engine
assert not {"bokeh", "rich", "http.server", "IPython"} & set(sys.modules)
""")


def test_an_engine_shows_itself_in_notebooks():
    engine = Engine(2, memory_limit="1GB")
    assert "not started yet" in engine._repr_html_()
    with engine:
        engine.get(SUM, "y-2")
        html = engine._repr_html_()
        assert "of 1.0 GB" in html
        assert "0 busy" in html
    assert "closed" in engine._repr_html_()
