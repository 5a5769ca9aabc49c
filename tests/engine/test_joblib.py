"""joblib's calls on our workers."""

import gc
import multiprocessing
import os
import time
import traceback

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import graphmill.joblib
from graphmill import config
from graphmill.engine import default_engine
from graphmill.errors import EngineClosed
from tests.engine.conftest import new_traces, traces

MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def backend():
    """The backend, on a default engine of two workers, of which nothing is left."""
    before = traces()
    graphmill.joblib.register()
    with config.set(num_workers=2), parallel_config("graphmill"):
        yield
    default_engine(None).close()
    gc.collect()
    assert not new_traces(before)


def fail_at(number, bad):
    if number == bad:
        raise ValueError(f"not {number}")
    return number


def process_of(_):
    time.sleep(0.05)  # so that one worker cannot do all of it
    return os.getpid()


def total_and_overwrite(array, number):
    found = float(array.sum()) + number
    array[:] = -1
    return found


def nested(number):
    return sum(Parallel(n_jobs=-1)(delayed(pow)(number, 2) for _ in range(3))), os.getpid()


def running(folder, number):
    """Note how many run at once."""
    mine = folder / str(number)
    mine.touch()
    count = len(list(folder.iterdir()))
    time.sleep(0.02)
    mine.unlink()
    return count


def test_results_come_in_order():
    assert Parallel()(delayed(pow)(n, 2) for n in range(100)) == [n * n for n in range(100)]
    assert Parallel(batch_size=7)(delayed(abs)(-n) for n in range(50)) == list(range(50))
    assert list(Parallel(return_as="generator")(delayed(abs)(-n) for n in range(20))) == list(range(20))
    assert Parallel()(delayed(abs)(n) for n in ()) == []


def test_workers_are_used_and_kept():
    first = set(Parallel()(delayed(process_of)(n) for n in range(8)))
    again = set(Parallel()(delayed(process_of)(n) for n in range(8)))
    assert len(first) == 2
    assert first == again
    assert os.getpid() not in first


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_no_more_than_asked_for_run_at_once(tmp_path, n_jobs):
    assert max(Parallel(n_jobs=n_jobs)(delayed(running)(tmp_path, n) for n in range(20))) == n_jobs


def test_an_array_that_all_are_given_enters_memory_once_and_stays_as_it_is():
    array = np.ones(4 * MB)
    engine = default_engine(None)
    before = engine.memory()
    found = Parallel()(delayed(total_and_overwrite)(array, number=n) for n in range(10))
    assert found == [4.0 * MB + n for n in range(10)]
    assert (array == 1).all()
    use = engine.memory()
    assert use.copied - before.copied < 2 * array.nbytes
    assert use.live == before.live, "it is let go of"


def test_an_error_ends_it_and_the_next_is_right():
    with pytest.raises(ValueError, match="not 3") as caught:
        Parallel()(delayed(fail_at)(n, 3) for n in range(1000))
    assert "in fail_at" in "".join(traceback.format_exception(caught.value))
    assert Parallel()(delayed(fail_at)(n, None) for n in range(10)) == list(range(10))


def test_a_call_that_takes_too_long():
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.2)(delayed(time.sleep)(n) for n in (60, 60))
    assert Parallel()(delayed(abs)(n) for n in range(4)) == list(range(4))


def test_an_engine_that_is_closed_meanwhile_is_an_error():
    def numbers():
        for number in range(100):
            if number == 10:
                default_engine(None).close()
            yield delayed(abs)(number)

    with pytest.raises(EngineClosed):
        Parallel(n_jobs=2, batch_size=1)(numbers())
    assert Parallel()(delayed(abs)(n) for n in range(4)) == list(range(4))


def test_calls_within_calls_are_made_one_after_the_other():
    found = Parallel()(delayed(nested)(n) for n in range(4))
    assert [each for each, _ in found] == [3 * n * n for n in range(4)]
    assert os.getpid() not in {process for _, process in found}


def test_one_pool_for_several():
    with Parallel(n_jobs=2) as parallel:
        for _ in range(3):
            assert parallel(delayed(abs)(-n) for n in range(10)) == list(range(10))


def test_nonsense():
    with pytest.raises(ValueError, match="n_jobs=0 has no meaning"):
        Parallel(n_jobs=0)(delayed(abs)(n) for n in range(2))


def test_how_many_there_are():
    assert joblib.effective_n_jobs(-1) == 2
    assert joblib.effective_n_jobs(-2) == 1
    assert joblib.effective_n_jobs(5) == 5
