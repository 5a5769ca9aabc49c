"""Workers that stand still (SIGSTOP): others go on, nothing is taken for dead, and all can be ended."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from graphmill import Engine
from tests.engine.conftest import traces

#: Seconds that a wait may take before something is wrong.
LIMIT = 60


def stop_once(path):
    """Stop this process; when it goes on, say which it was."""
    path.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


def wait_for(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stopped(path):
    """Get the process that has stopped itself; None if none has."""
    try:
        pid = int(path.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return pid if state == "T" else None


def test_others_go_on_and_it_is_not_taken_for_dead(tmp_path, caplog):
    path = tmp_path / "stopped"
    finished = []

    def posttask(key, *_):
        finished.append(key)

    others = {("x", i): (time.sleep, 0.01) for i in range(50)}
    with Engine(3) as engine:
        found = {}

        def compute():
            dsk = {"stops": (stop_once, path), **others}
            found["pid"] = engine.get(dsk, ["stops", *others], callbacks=(None, None, None, posttask, None))[
                0
            ]

        thread = threading.Thread(target=compute)
        thread.start()
        # All that the other workers have: what was given to this one at once waits with it.
        wait_for(lambda: stopped(path) and len(finished) >= 45)
        assert "stops" not in finished
        os.kill(stopped(path), signal.SIGCONT)
        thread.join(LIMIT)
        assert found["pid"] == int(path.read_text())
    assert not [record for record in caplog.records if "died" in record.message]


def test_another_compute_goes_on(tmp_path):
    path = tmp_path / "stopped"
    with Engine(2) as engine:
        thread = threading.Thread(target=engine.get, args=({"stops": (stop_once, path)}, "stops"))
        thread.start()
        wait_for(lambda: stopped(path))
        dsk = {("x", i): (abs, -i) for i in range(100)}
        assert engine.get(dsk, list(dsk)) == tuple(range(100))
        os.kill(stopped(path), signal.SIGCONT)
        thread.join(LIMIT)


def test_ctrl_c_ends_it(tmp_path):
    path = tmp_path / "stopped"
    with Engine(1) as engine:
        engine.get({"x": (abs, -1)}, "x")

        def interrupt():
            wait_for(lambda: stopped(path))
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            engine.get({"stops": (stop_once, path)}, "stops")
        thread.join(LIMIT)
        assert engine.get({"x": (abs, -1)}, "x") == 1


def test_closing_ends_it():
    before = traces()
    engine = Engine(2)
    dsk = {("x", i): (abs, -i) for i in range(10)}
    engine.get(dsk, list(dsk))
    for number in range(2):
        if engine.pool.pid(number) is not None:
            os.kill(engine.pool.pid(number), signal.SIGSTOP)
    engine.close()
    assert traces() == before
