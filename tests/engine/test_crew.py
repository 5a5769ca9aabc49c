"""What a crew tells its workers, with a pool that only writes it down."""

import pytest

from graphmill.engine.blocks import Blocks
from graphmill.engine.crew import Crew
from graphmill.engine.seats import Flight
from graphmill.memory.block import Extent
from graphmill.workers.claims import Claims
from graphmill.workers.messages import Died
from graphmill.workers.work import Job, Report, Shipped, Work

PAYLOAD = Shipped(b"", ())


class Pool:
    """Stands for worker processes."""

    def __init__(self, num_workers):
        self.num_workers = num_workers
        self.sent = []
        self.claimed = []
        self.claims = {}
        self.restarted = []
        self.killed = []

    def send(self, worker, message):
        if isinstance(message, Work):
            self.sent += [(worker, job.number) for job in message.jobs]
            self.claimed += [(worker, number) for number in message.claimed]
        else:
            self.claims[worker] = Claims.attach(message.claims)

    def guard(self, *paths):
        pass

    unguard = guard

    def restart(self, worker):
        self.restarted.append(worker)

    def kill(self, worker):
        self.killed.append(worker)

    def pid(self, worker):
        return 1


class Client:
    """Stands for a run."""

    cancelled = False

    def __init__(self, workers):
        self.workers = workers
        self.ended = []
        self.lost = []

    def on_lost(self, flight, died, worker):
        self.lost.append(flight.job.number)

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
    for claims in made._pool.claims.values():
        claims.close()


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


def quick_job(number, client):
    return Flight(client, Job(number, PAYLOAD, (), quick=True), (), {}, 0.0001, (), None)


def test_what_a_dead_worker_had_not_begun_is_given_out_again(crew):
    client = Client(1)
    for number in range(3):
        crew.submit(quick_job(number, client))
    crew.flush()
    pool = crew._pool
    assert pool.sent == [(0, 0), (0, 1), (0, 2)]
    crew.take_in([(0, Died(1, None, 9))])
    crew.flush()
    assert client.lost == [0], "only the first had begun"
    assert pool.restarted == [0]
    assert sorted(number for _, number in pool.sent[3:]) == [1, 2]


def test_what_is_no_report_ends_its_worker(crew):
    client = Client(2)
    crew.submit(long_job(0, client))
    crew.flush()
    crew.take_in([(1, "nonsense")])
    assert crew._pool.killed == [1]
    crew.take_in([(1, Report(7, PAYLOAD))])
    assert crew._pool.killed == [1, 1], "nobody has asked for that"
    crew.take_in([(0, Report(0, Shipped(b"", (Extent(999, 0, 0, 8, 4096),))))])
    assert crew._pool.killed == [1, 1, 0], "there is no such memory"
    assert client.ended == []


def behind_each_other(crew, client, count=4):
    """Have jobs, of which the even ones go to one worker and the odd ones to the other."""
    for number in range(count):
        crew.submit(soon_job(number, client))
    crew.flush()
    assert crew._pool.sent == [(number % 2, number) for number in (*range(0, count, 2), *range(1, count, 2))]


def soon_job(number, client):
    return Flight(client, Job(number, PAYLOAD, ()), (), {}, 0.01, (), None)


def test_an_idle_worker_takes_over_what_another_has_not_begun(crew):
    client, pool = Client(2), crew._pool
    behind_each_other(crew, client)
    assert pool.claimed == [(0, 2), (1, 3)], "those that wait behind another"
    crew.level()
    assert len(pool.sent) == 4, "nobody is idle"
    crew.take_in([(1, Report(1, PAYLOAD)), (1, Report(3, PAYLOAD))])
    crew.level()
    assert pool.sent[4:] == [(1, 2)]
    assert pool.claims[0].claim() is None, "the first worker must not begin it any more"
    assert (1, 2) not in pool.claimed, "nor can anybody take it from the second"
    crew.take_in([(0, Report(0, PAYLOAD)), (1, Report(2, PAYLOAD))])
    assert client.ended == [1, 3, 0, 2]
    crew.level()
    assert not crew.busy


def test_what_a_worker_has_claimed_stays_with_it(crew):
    client, pool = Client(2), crew._pool
    behind_each_other(crew, client)
    assert pool.claims[0].claim() == 2
    crew.take_in([(1, Report(1, PAYLOAD)), (1, Report(3, PAYLOAD))])
    crew.level()
    assert len(pool.sent) == 4
    assert crew.busy == 1


def test_no_worker_takes_over_what_its_run_must_not_have_there(crew):
    client = Client(1)
    for number in range(3):
        crew.submit(soon_job(number, client))
    crew.flush()
    crew.level()
    assert {worker for worker, _ in crew._pool.sent} == {0}


def test_what_was_cancelled_is_not_begun_by_another(crew):
    client, pool = Client(2), crew._pool
    behind_each_other(crew, client)
    client.cancelled = True
    crew.take_in([(1, Report(1, PAYLOAD)), (1, Report(3, PAYLOAD))])
    crew.level()
    assert len(pool.sent) == 4
    crew.take_in([(0, Report(0, PAYLOAD))])
    assert not crew.busy
