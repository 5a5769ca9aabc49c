"""What waits at one worker behind a task that takes longer than was expected, others take over."""

import os
import time
from pathlib import Path

import pytest

from graphmill import Engine

#: Seconds after which nobody waits any more.
LIMIT = 20
TASKS = 6


@pytest.fixture
def engine():
    with Engine(2) as made:
        known = {("soon", i): (time.sleep, 0.005) for i in range(40)}
        made.get(known, list(known))
        assert 0.001 < made.estimates.seconds(("soon", 0)) < 0.1, "so workers have one more at hand"
        yield made


def test_no_worker_is_idle_while_another_has_what_it_has_not_begun(engine, tmp_path):
    flags = [str(tmp_path / str(i)) for i in range(TASKS)]
    # The first one ends when all others have, of which its worker has one at hand.
    tasks = {
        ("soon", i): (_touch_once_there_are, flags[i], flags[1:] if i == 0 else []) for i in range(TASKS)
    }
    pids = engine.get(tasks, list(tasks))
    assert len(set(pids[1:])) == 1
    assert pids[0] not in pids[1:]


def test_each_task_runs_once(engine, tmp_path):
    """Tasks of very different lengths, so that they go to and fro."""
    for number in range(5):
        counts = [str(tmp_path / f"{number}-{i}") for i in range(60)]
        tasks = {("soon", i): (_count, counts[i], 0.05 if i % 7 == 0 else 0) for i in range(60)}
        engine.get(tasks, list(tasks))
        assert [Path(count).read_text() for count in counts] == ["x"] * 60


def test_where_there_are_no_pipes_jobs_stay_where_they_are(monkeypatch, tmp_path):
    def refuse(path, mode):
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "mkfifo", refuse)
    with Engine(2) as engine:
        counts = [str(tmp_path / str(i)) for i in range(100)]
        for _ in range(2):  # the second time, workers have one more at hand
            tasks = {("soon", i): (_count, counts[i], 0.002) for i in range(100)}
            engine.get(tasks, list(tasks))
        assert [Path(count).read_text() for count in counts] == ["xx"] * 100


def _touch_once_there_are(flag, others):
    deadline = time.monotonic() + LIMIT
    while not all(Path(each).exists() for each in others):
        if time.monotonic() > deadline:
            raise TimeoutError("a task that waits behind this one was not taken over")
        time.sleep(0.001)
    Path(flag).touch()
    return os.getpid()


def _count(path, seconds):
    time.sleep(seconds)
    with Path(path).open("a") as file:
        file.write("x")
