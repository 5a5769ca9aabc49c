"""Calls whose pickles, results or workers go wrong: each future is done, and the executor goes on."""

import concurrent.futures
import os
import signal
import sys
import time

import pytest

import graphmill
from graphmill.errors import DecodeError, EncodeError, RemoteError, WorkerDied

LIMIT = 60


@pytest.fixture
def executor(engine):
    with graphmill.Executor(engine=engine) as made:
        yield made
        assert made.submit(pow, 2, 3).result(LIMIT) == 8
    assert engine.memory().live == 0


def _exit():
    sys.exit(1)


def _crash():
    os.kill(os.getpid(), signal.SIGKILL)


def _raise():
    raise ZeroDivisionError("at unpickling")


class ErrorAtPickle:
    def __reduce__(self):
        raise ZeroDivisionError("at pickling")


class ExitAtPickle:
    def __reduce__(self):
        sys.exit(1)


class CrashAtPickle:
    def __reduce__(self):
        _crash()


class ErrorAtUnpickle:
    def __reduce__(self):
        return _raise, ()


class ExitAtUnpickle:
    def __reduce__(self):
        return _exit, ()


class CrashAtUnpickle:
    def __reduce__(self):
        return _crash, ()


def make(cls):
    return cls()


@pytest.mark.parametrize(
    ("cls", "error"),
    [
        (ErrorAtPickle, EncodeError),
        (ExitAtPickle, EncodeError),
        (ErrorAtUnpickle, DecodeError),
        (ExitAtUnpickle, WorkerDied),
        (CrashAtUnpickle, WorkerDied),
    ],
)
def test_an_argument_that_goes_wrong(executor, cls, error):
    assert isinstance(executor.submit(id, cls()).exception(LIMIT), error)


@pytest.mark.parametrize(
    ("cls", "error"),
    [
        (ErrorAtPickle, EncodeError),
        (ExitAtPickle, WorkerDied),
        (CrashAtPickle, WorkerDied),
        (ErrorAtUnpickle, DecodeError),
        (ExitAtUnpickle, SystemExit),
    ],
)
def test_a_result_that_goes_wrong(executor, cls, error):
    assert isinstance(executor.submit(make, cls).exception(LIMIT), error)


@pytest.mark.parametrize(("function", "error"), [(_exit, SystemExit), (_raise, ZeroDivisionError)])
def test_what_a_call_raises(executor, function, error):
    assert type(executor.submit(function).exception(LIMIT)) is error


def test_an_exception_that_does_not_pickle(executor):
    def fail():
        error = ValueError("told")
        error.lock = __import__("threading").Lock()
        raise error

    error = executor.submit(fail).exception(LIMIT)
    assert isinstance(error, (RemoteError, ValueError))
    assert "told" in str(error)


def test_the_error_names_what_cannot_be_pickled(executor):
    with pytest.raises(EncodeError, match="lock"):
        executor.submit(id, {"a": [__import__("threading").Lock()]}).result()


def test_a_worker_that_dies_time_and_again(executor, engine):
    error = executor.submit(_crash).exception(LIMIT)
    assert isinstance(error, WorkerDied)
    # What is written for process pools catches this.
    assert isinstance(error, concurrent.futures.BrokenExecutor)
    assert "killed by signal 9" in str(error)
    assert f"{engine.retries + 1} times" in str(error)


def test_a_call_is_run_again_when_its_worker_dies(executor, tmp_path):
    def die_once():
        if not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            _crash()
        return os.getpid()

    others = [executor.submit(time.sleep, 0.01) for _ in range(5)]
    assert executor.submit(die_once).result(LIMIT) > 0
    assert [each.result(LIMIT) for each in others] == [None] * 5


def test_warnings_of_calls_are_given_here(executor):
    def warn():
        __import__("warnings").warn("look", UserWarning, stacklevel=1)
        return 1

    future = executor.submit(warn)
    # Warnings are errors in tests: so it is raised where the result is asked for.
    assert isinstance(future.exception(LIMIT), UserWarning)
