"""What a crew tells its workers, with a pool that only writes it down."""

import pytest

from graphmill.engine.blocks import Blocks
from graphmill.engine.crew import Crew, Flight
from graphmill.workers.work import Job, Report, Shipped, Work

PAYLOAD = Shipped(b"", ())


class Pool:
    """Stands for worker processes."""

    def __init__(self, num_workers):
        self.num_workers = num_workers
        self.sent = []

    def send(self, worker, message):
        if isinstance(message, Work):
            self.sent += [(worker, job.number) for job in message.jobs]

    def guard(self, *paths):
        pass

    unguard = guard


class Client:
    """Stands for a run."""

    cancelled = False

    def __init__(self, workers):
        self.workers = workers
        self.ended = []

    def on_report(self, flight, report, worker):
        self.ended.append(report.number)


def long_job(number, client):
    job = Job(number, PAYLOAD, ())
    return Flight(client, job, (), {}, 1.0, (), None)


@pytest.fixture
def crew(tmp_path):
    blocks = Blocks(0, lambda number: None, None)
    made = Crew(Pool(2), blocks, arena_size=1 << 20, folder=tmp_path, in_files=True, warm_limit=0)
    yield made
    blocks.close()
    made.close()


def test_a_job_that_waits_for_a_worker_goes_to_the_first_that_reports(crew):
    client = Client(2)
    for number in range(4):
        crew.submit(long_job(number, client))
    crew.flush()
    sent = crew._pool.sent
    assert sent == [(0, 0), (1, 1)]
    crew.take_in([(1, Report(1, PAYLOAD))])
    crew.flush()
    assert sent[2:] == [(1, 2)]
    crew.take_in([(0, Report(0, PAYLOAD)), (1, Report(2, PAYLOAD))])
    crew.flush()
    assert sent[3:] == [(0, 3)]
    assert client.ended == [1, 0, 2]


def test_a_run_keeps_to_its_number_of_workers(crew):
    client = Client(1)
    for number in range(3):
        job = Job(number, PAYLOAD, (), quick=True)
        crew.submit(Flight(client, job, (), {}, 0.0001, (), None))
    crew.flush()
    assert {worker for worker, _ in crew._pool.sent} == {0}
