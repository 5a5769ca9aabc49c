"""The suite measures what it says, tells wrong answers from right ones, and works out the right ratios."""

import json

import numpy as np
import pytest

dask = pytest.importorskip("dask")
zarr = pytest.importorskip("zarr")
pytest.importorskip("dask.dataframe")
pytest.importorskip("scipy")
pytest.importorskip("xarray")

from benchmarks import __main__ as program  # noqa: E402 - only where those are
from benchmarks.footprint import PROC, Footprint, Memory, ProgramFailed  # noqa: E402
from benchmarks.suite import engines  # noqa: E402
from benchmarks.suite.base import Kind, NotApplicable, Running, run  # noqa: E402
from benchmarks.suite.catalogue import WORKLOADS  # noqa: E402
from benchmarks.suite.figures import figures  # noqa: E402
from benchmarks.suite.measure import Turns, Wanted, failure, last_line, prepare  # noqa: E402
from benchmarks.suite.report import Report, table  # noqa: E402
from benchmarks.suite.results import RIGHT, Ran, Results, Trace, geometric_mean  # noqa: E402
from benchmarks.suite.scales import SCALES  # noqa: E402
from benchmarks.workload import keep  # noqa: E402

TINY = SCALES["tiny"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", WORKLOADS)
def test_right_answers_are_told_from_wrong_ones(name, data, tmp_path):
    workload = WORKLOADS[name](TINY, data)
    workload.make()
    sync = Running({"scheduler": "sync"}, dask.get)
    compute = run(workload, sync, tmp_path)
    keep(compute(), tmp_path)
    found = workload.mistake(tmp_path)
    if workload.kind is Kind.MUTATION:
        assert "sum" in found  # one thread is enough to get it wrong
        return
    assert found is None
    for path in sorted(tmp_path.iterdir()):
        spoil(path)
        assert workload.mistake(tmp_path) is not None


def spoil(path):
    """Change the last value of what was stored; for words and counts, the last count."""
    stored = zarr.open_array(str(path)) if path.suffix == ".zarr" else np.load(path)
    last = (-1,) * stored.ndim
    if stored.dtype.kind == "U":
        stored[last] = str(int(stored[last]) + 1)
    else:
        stored[last] = stored[last] * 2 + 1
    if path.suffix == ".npy":
        np.save(path, stored)


def test_a_block_changed_in_place_is_right_where_inputs_are_private(data, tmp_path):
    workload = WORKLOADS["in-place"](TINY, data)
    with engines.graphmill(2) as running:
        keep(run(workload, running, tmp_path)(), tmp_path)
    assert workload.mistake(tmp_path) is None


@pytest.mark.parametrize("name", ["threads", "graphmill", "distributed", "joblib"])
def test_engines_run_calls(name, data, tmp_path):
    if engines.ENGINES[name].missing or name == "distributed":
        pytest.skip("not installed, or too slow to start for what it shows")
    workload = WORKLOADS["tiny-raw"](TINY, data)
    with engines.ENGINES[name].start(2) as running:
        running.start()
        keep(run(workload, running, tmp_path)(), tmp_path)
    assert workload.mistake(tmp_path) is None


def test_engines_without_graphs_refuse_collections(data, tmp_path):
    calls = Running(calls=lambda wanted: [function(*given) for function, given in wanted])
    with pytest.raises(NotApplicable):
        run(WORKLOADS["fft"](TINY, data), calls, tmp_path)
    for name in ("python-blocks", "tiny-raw"):
        workload = WORKLOADS[name](TINY, data)
        keep(run(workload, calls, tmp_path)(), tmp_path)
        assert workload.mistake(tmp_path) is None


def wanted(data, **options):
    return Wanted(**{"scale": TINY, "data": data, "rounds": 1, "computes": 2, "patience": 8.0} | options)


def test_runs_are_watched_and_checked(data):
    prepare(wanted(data), "transpose")
    turns = Turns(wanted(data), "transpose", 2, session=3)
    threads, ours = turns.take(["threads", "graphmill"])
    for ran in (threads, ours):
        assert (ran.outcome, len(ran.seconds), ran.session) == (RIGHT, 2, 3)
        assert ran.started is not None
        if PROC.is_dir():
            assert 0 < ran.private < ran.resident
    assert threads.spilled is None
    assert ours.spilled == 0
    assert not list(data.glob("results-*"))


def test_wrong_answers_are_told(data, monkeypatch):
    turns = Turns(wanted(data, computes=1), "in-place", 2, session=1)
    (ran,) = turns.take(["threads"])
    assert ran.outcome.startswith("wrong answer: the sum of")
    assert len(ran.seconds) == 1


def test_peers_that_are_missing_say_so(data, monkeypatch):
    gone = engines.EngineKind("ray", "Ray", engines.ray, "a_package_that_nobody_has")
    monkeypatch.setitem(engines.ENGINES, "ray", gone)
    turns = Turns(wanted(data), "histogram", 2, session=1)
    (ran,) = turns.take(["ray"])
    assert ran.outcome == "a_package_that_nobody_has is not installed"
    assert "not installed" in Report(Results(runs=[ran])).page()


def test_failures_are_told_in_a_line(data):
    took = Footprint(5.0, Memory(), 0, 'x\nValueError: no\n{"seconds": []}\n', 1, 1, 0.0, 0.0)
    assert failure(ProgramFailed("", 1, took), limit=9) == "ValueError: no"
    assert failure(ProgramFailed("", -15, took), limit=4) == "> 4 s"
    assert last_line('{"a": 1}\n{"a": 2}\nwarning: {') == {"a": 2}
    assert last_line("nothing") == {}


def test_who_takes_too_long_is_ended_and_reported(data, monkeypatch):
    monkeypatch.setattr("benchmarks.suite.measure.STARTING", 0.0)
    turns = Turns(wanted(data, patience=0.0), "fft", 2, session=1)
    turns.runs.append(ran("threads", 0.5, workload="fft"))
    stopped = turns.run("processes")
    assert stopped.outcome == "> 0 s"
    assert stopped.at_least is not None
    assert not stopped.seconds


def ran(engine, *seconds, workload="fft", session=1, workers=2, outcome=RIGHT, **more):
    return Ran(workload, engine, workers, "tiny", session, outcome, seconds, 0.1, **more)


def test_ratios_are_between_runs_that_took_turns():
    results = Results()
    results.add([ran("threads", 2.0), ran("graphmill", 1.0), ran("threads", 4.0), ran("graphmill", 3.0)])
    found = results.compared("fft", "graphmill", 2)
    assert found.time == (0.5 + 0.75) / 2
    assert found.seconds == 2.0
    results.add([ran("threads", 10.0, session=2), ran("ray", 5.0, session=2)])
    assert results.compared("fft", "ray", 2).time == 0.5
    assert results.compared("fft", "graphmill", 2).time == (0.5 + 0.75) / 2
    # Measured again: what was found before goes, with the threads that it was compared with.
    results.add([ran("threads", 1.0, session=3), ran("graphmill", 0.1, session=3)])
    assert results.compared("fft", "graphmill", 2).time == 0.1
    assert {run.session for run in results.runs} == {2, 3}
    assert results.compared("fft", "threads", 2).time == 1
    assert results.compared("fft", "graphmill", 4) is None


def test_the_quickest_of_a_process_counts_and_first_ones_are_kept():
    results = Results(runs=[ran("threads", 3.0, 2.0), ran("graphmill", 3.0, 1.0)])
    found = results.compared("fft", "graphmill", 2)
    assert (found.time, found.first_time) == (0.5, 1.0)


def test_results_are_the_same_once_read_again(tmp_path):
    results = Results(
        {"cpus": 2}, [ran("threads", 1.5, spilled=3)], [Trace("fft", "ray", 2, "tiny", ((0.5, 7),))]
    )
    path = tmp_path / "deep" / "tiny.json"
    results.write(path)
    assert Results.read(path) == results
    json.loads(path.read_text())


def test_figures_that_are_wanted():
    results = Results()
    results.add(
        [
            ran("threads", 1.0, workload=name, private=100)
            if engine == "threads"
            else ran(engine, seconds, workload=name, private=private)
            for name in ("fft", "store", "gram")
            for engine, seconds, private in (
                ("threads", 1, 1),
                ("graphmill", 0.5, 50),
                ("distributed", 2.0, 200),
            )
        ]
    )
    found = {figure.name: figure for figure in figures(results, 2)}
    assert found["array workloads, geometric mean: time / threads"].found == pytest.approx(0.5)
    assert found["array workloads, geometric mean: time / distributed"].found == pytest.approx(0.25)
    assert found["array workloads, geometric mean: memory / distributed"].found == pytest.approx(0.25)
    assert found["worst array workload: memory / threads"].verdict == "yes"
    missing = found["Python-bound function per block: time / threads"]
    assert (missing.found, missing.verdict) == (None, "not measured")


def test_a_peer_that_was_ended_counts_with_the_time_that_it_had():
    results = Results()
    ended = ran("distributed", outcome="> 60 s", at_least=8.0)
    results.add([ran("threads", 1.0), ran("graphmill", 0.5), ended])
    found = {figure.name: figure for figure in figures(results, 2)}
    assert found["array workloads, geometric mean: time / distributed"].found == pytest.approx(0.5 / 8)
    assert "> 8" in Report(results).table()


def test_a_page_has_all_of_it():
    results = Results({"cpus": 2, "versions": {"dask": "1"}})
    results.add(
        [
            ran("threads", 1.0, private=10**8),
            ran("graphmill", 0.25, private=5 * 10**7, spilled=0),
            ran("ray", outcome="ValueError: no"),
        ]
    )
    results.add([ran("threads", 2.0, workers=1, session=2), ran("graphmill", 1.0, workers=1, session=2)])
    page = Report(results).page([("Ratios", "results/ratios.png")])
    assert "| 0.25 / 0.50 |" in page
    assert "1. ray: ValueError: no" in page
    assert "![Ratios](results/ratios.png)" in page
    assert "1: 2.00, 2: 1.00" in page


def test_a_page_warns_of_other_programs():
    idle = Results(runs=[ran("threads", 1.0, others=0.01), ran("ray", 1.0, others=9.0)])
    busy = Results(runs=[ran("threads", 1.0, others=1.2)])
    assert "Other programs" not in Report(idle).page()
    assert "Other programs took 1.2 CPUs" in Report(busy).page()


def test_tables_are_aligned():
    assert table(["a", "b"], [["long", "1"], ["x|y", "22"]]).splitlines() == [
        "| a    |  b |",
        "| ---- | -: |",
        "| long |  1 |",
        "| x\\|y | 22 |",
    ]


def test_geometric_mean():
    assert geometric_mean([0.25, 4.0]) == pytest.approx(1.0)
    assert geometric_mean([]) is None


def test_the_whole_of_it(tmp_path, capsys):
    common = ["--scale", "tiny", "--rounds", "1", "--computes", "1", "--results", str(tmp_path / "results")]
    common += ["--data", str(tmp_path / "data"), "--engines", "graphmill"]
    assert program.main([*common, "--only", "histogram", "--workers", "1,2"]) == 0
    assert program.main([*common, "--only", "tiny-raw", "--workers", "2", "--merge"]) == 0
    assert program.main([*common, "--only", "--trace", "histogram", "--workers", "2", "--merge"]) == 0
    results = Results.read(tmp_path / "results" / "tiny.json")
    measured = {(run.workload, run.workers, run.engine) for run in results.runs}
    names = {("histogram", 1), ("histogram", 2), ("tiny-raw", 2)}
    assert measured == {(*each, engine) for each in names for engine in ("threads", "graphmill")}
    assert {trace.engine for trace in results.traces} == {"threads", "graphmill"}
    assert all(len(trace.points) > 1 for trace in results.traces)
    page = (tmp_path / "results" / "RESULTS.md").read_text()
    assert "tiny-raw" in page
    assert "in full:" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    for name in ("ratios", "memory", "scaling"):
        assert (tmp_path / "results" / f"{name}.png").stat().st_size > 1000


@pytest.mark.parametrize("text", ["two", "0", "1,,2"])
def test_numbers_of_workers_are_checked(text, capsys):
    with pytest.raises(SystemExit):
        program.main(["--workers", text])
    assert "worker" in capsys.readouterr().err
