"""What tasks raise, of every kind, as it arrives; and what the log tells of an engine's life."""

import os
import signal
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from graphmill import Engine
from graphmill.errors import RemoteError
from tests.engine.conftest import limit_beyond

NOTE = "raised by the task 'x'"


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.second = second


class Holder(Exception):
    def __init__(self, it):
        super().__init__("holds something")
        self.it = it


def leave(code):
    sys.exit(code)


def interrupt(_):
    raise KeyboardInterrupt("of my own")


def want_memory(_):
    raise MemoryError("too much")


def recurse(n):
    return recurse(n + 1)


def two(_):
    raise TwoArguments("first", "second")


def hold(what):
    makes = {"array": lambda: np.ones(300_000), "lock": threading.Lock, "socket": socket.socket}
    raise Holder(makes[what]())


def several(_):
    raise ExceptionGroup("several", [ValueError(1), ExceptionGroup("more", [KeyError(2)])])


def chained(_):
    try:
        1 / 0  # noqa: B018 - raises
    except ZeroDivisionError as error:
        raise ValueError("then") from error


def stop(_):
    return next(iter(()))


def raised(engine, function, argument=0):
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - looked at by each test
        engine.get({"x": (function, argument)}, "x")
    assert NOTE in caught.value.__notes__
    assert engine.get({"x": (abs, -1)}, "x") == 1, "the engine goes on"
    assert engine.blocks.live == 0
    return caught.value


@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [
        (interrupt, KeyboardInterrupt, "of my own"),
        (want_memory, MemoryError, "too much"),
        (recurse, RecursionError, "recursion"),
        (stop, StopIteration, ""),
    ],
)
def test_types_and_texts(engine, function, kind, text):
    error = raised(engine, function)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("code", [0, 3, "why", None])
def test_an_exit_is_told_and_ends_no_worker(engine, code):
    pids = [engine.pool.pid(number) for number in range(2)]
    error = raised(engine, leave, code)
    assert type(error) is SystemExit
    assert error.code == code
    assert [engine.pool.pid(number) for number in range(2)] == pids


def test_a_constructor_with_arguments(engine):
    error = raised(engine, two)
    assert (type(error), error.args, error.second) == (TwoArguments, ("first",), "second")


def test_an_array_travels_along(engine):
    error = raised(engine, hold, "array")
    assert type(error) is Holder
    assert (error.it == 1).all()
    error.it += 1


@pytest.mark.parametrize("what", ["lock", "socket"])
def test_what_cannot_travel_is_named(engine, what):
    error = raised(engine, hold, what)
    assert type(error) is RemoteError
    assert error.type_name.endswith("Holder")
    assert "holds something" in str(error)
    assert "in hold" in error.story


def test_a_group(engine):
    error = raised(engine, several)
    assert repr(error) == repr(
        ExceptionGroup("several", [ValueError(1), ExceptionGroup("more", [KeyError(2)])])
    )


def test_a_chain(engine):
    error = raised(engine, chained)
    assert type(error.__cause__) is ZeroDivisionError
    assert error.__cause__.__traceback__ is not None


# ---- the log


def die_once(marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def block(i):
    return np.full(1_000_000, float(i))


def test_the_log_tells_of_starts_deaths_and_spills(caplog, capfd, tmp_path):
    caplog.set_level("INFO", logger="graphmill")
    limit = limit_beyond(200 << 20, workers=1)
    caplog.clear()
    with Engine(1, memory_limit=limit, spill_folder=tmp_path) as engine:
        engine.get({"x": (die_once, str(tmp_path / "died"))}, "x")
        keys = [("x", i) for i in range(40)]
        engine.get({**{key: (block, key[1]) for key in keys}, "n": (len, keys)}, "n")
        assert engine.memory().spilled
    told = [record.getMessage() for record in caplog.records if record.name.startswith("graphmill")]
    for text in (
        "engine started: 1 workers, a memory limit of",
        "worker 0 has died",
        "the task 'x' is run again",
        "blocks move to disk",
        "engine closed",
    ):
        assert sum(text in line for line in told) == 1, (text, told)
    assert capfd.readouterr() == ("", "")
