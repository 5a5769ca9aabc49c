"""A job that waits has one taker, whoever asks first."""

import subprocess
import sys
from subprocess import PIPE

import pytest

from graphmill.workers.claims import Claims

JOBS = 5_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "claims"


@pytest.fixture
def engine_end(path):
    claims = Claims.create(path)
    yield claims
    claims.close()


@pytest.fixture
def worker_end(engine_end, path):
    claims = Claims.attach(path)
    yield claims
    claims.close()


def test_jobs_are_claimed_in_the_order_in_which_they_were_offered(engine_end, worker_end):
    assert worker_end.claim() is None
    for number in (3, 2**40, 5):
        assert engine_end.offer(number)
    assert worker_end.claim() == 3
    assert engine_end.claim() == 2**40
    assert worker_end.claim() == 5
    assert engine_end.claim() is None


TAKER = """
import sys
from pathlib import Path
from graphmill.workers.claims import Claims

claims = Claims.attach(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while (number := claims.claim()) is not None:
    print(number)
claims.close()
"""


def test_each_job_has_one_taker(engine_end, path):
    command = [sys.executable, "-c", TAKER, str(path)]
    takers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) for _ in range(2)]
    for number in range(JOBS):
        assert engine_end.offer(number)
    for taker in takers:
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        taker.stdin.write("go\n")
        taker.stdin.flush()
    mine = []
    while (number := engine_end.claim()) is not None:
        mine.append(number)
    theirs = [taker.communicate(timeout=30)[0].split() for taker in takers]
    assert [taker.returncode for taker in takers] == [0, 0]
    assert sorted([*mine, *map(int, theirs[0]), *map(int, theirs[1])]) == list(range(JOBS))


def test_a_full_pipe_says_so(engine_end):
    offered = 0
    while engine_end.offer(offered):
        offered += 1
    assert offered >= 512  # what POSIX promises of a pipe, in numbers
    assert [engine_end.claim() for _ in range(offered)] == list(range(offered))
    assert engine_end.claim() is None


def test_a_worker_whose_engine_is_gone_has_no_job(path):
    engine_end = Claims.create(path)
    worker_end = Claims.attach(path)
    engine_end.close()
    assert worker_end.claim() is None
    assert not path.exists()
    engine_end.close()
    worker_end.close()
