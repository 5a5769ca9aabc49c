"""Records made from logs."""

import dataclasses

import pandas as pd

from graphmill.diagnostics.records import highest, record_runs

MB = 1_000_000


def test_tasks(recording):
    again = recording.tasks[2]
    assert (again.key, again.kind, again.worker, again.outcome) == (("load-1a", 1), "load", 1, "done")
    assert (again.start, again.end, again.seconds) == (1.5, 2.5, 1.0)
    assert (again.output_bytes, again.copied_bytes, again.retry) == (8 * MB, 8 * MB, 1)
    assert recording.tasks[1].outcome == "refused"
    assert recording.tasks[1].retry == 0


def test_inputs_are_those_that_it_depends_on_through_aliases_too(recording):
    by_key = {task.key: task for task in recording.tasks}
    assert by_key["sum-2b", 0].input_bytes == 8 * MB
    assert by_key["total-3c"].input_bytes == 200
    assert by_key["load-1a", 0].input_bytes == 0


def test_a_worker_that_died_counts_as_a_go(recording):
    by_key = {task.key: task for task in recording.tasks}
    assert by_key["sum-2b", 1].retry == 1
    assert by_key["sum-2b", 0].retry == 0
    (death,) = recording.deaths
    assert (death.kind, death.time, death.worker) == ("sum", 2.75, 1)


def test_memory_and_spills(recording):
    last = recording.memory[-1]
    assert (last.time, last.total, last.live, last.on_disk) == (4.0, 158 * MB, 0, 8 * MB)
    (spill,) = recording.spills
    assert (spill.kind, spill.time, spill.seconds, spill.nbytes) == ("load", 2.5, 0.125, 8 * MB)


def test_summary(recording):
    assert dataclasses.asdict(recording.summary) == {
        "seconds": 3.5,
        "tasks": 5,
        "peak": 224 * MB,
        "limit": 800 * MB,
        "spilled": 8 * MB,
        "retries": 2,
        "deaths": 1,
        "read_in_place": 16 * MB,
        "born_in_place": 8 * MB + 200,
        "copied": 8 * MB,
    }


def test_rows_for_pandas(recording):
    frame = pd.DataFrame(recording.tasks.to_records())
    assert frame[frame.outcome == "done"].groupby("kind")["output_bytes"].sum()["load"] == 16 * MB
    assert frame.key[0] == ("load-1a", 0)
    assert list(pd.DataFrame(recording.memory.to_records()).time) == [0.5, 2.0, 4.0]


def test_what_has_not_ended_goes_as_far_as_it_is_known(log, glances):
    log.ended = None
    assert record_runs(2, [log], glances, origin=99.0).end == 4.0
    empty = record_runs(2, [], [], origin=99.0)
    assert (empty.start, empty.end, empty.tasks.to_records()) == (0.0, 0.0, [])
    assert empty.summary.tasks == 0


def test_peaks_between_samples_count(glances):
    assert highest(glances) == 224 * MB
    glances[0] = dataclasses.replace(glances[0], peak=300 * MB)  # before anybody looked
    glances[2] = dataclasses.replace(glances[2], peak=300 * MB)
    assert highest(glances) == 224 * MB
    glances[2] = dataclasses.replace(glances[2], peak=310 * MB)
    assert highest(glances) == 310 * MB
    assert highest([]) == 0
