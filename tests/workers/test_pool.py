"""The pool: workers start, answer, die, are interrupted and replaced, and nothing is left of them."""

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from graphmill.errors import GraphmillError, PoolError, UnsupportedPlatform
from graphmill.workers import launch, supervisor, template_handle
from graphmill.workers.messages import Died
from graphmill.workers.pool import Pool
from graphmill.workers.signals import InterruptHold

LIMIT = 60

KILLED = signal.SIGKILL


def until_died(pool):
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        for _, message in pool.poll(LIMIT):
            if isinstance(message, Died):
                return message
    raise AssertionError("nobody died")


# ---- life


def test_workers_answer(make_pool, collect):
    pool = make_pool(3)
    for worker in range(3):
        pool.send(worker, "one", "two")
        pool.send(worker, "three")
    events = collect(pool, 9)
    for worker in range(3):
        assert [message for number, message in events if number == worker] == ["one", "two", "three"]


def test_making_a_pool_starts_nothing(make_pool):
    before = psutil.Process().children()  # other tests may have had a server for forks started
    pool = make_pool(2)
    assert pool.template_pid is None
    assert psutil.Process().children() == before
    assert "new" in repr(pool)
    assert pool.num_workers == 2
    pool.wake()
    pool.interrupt(0)
    pool.kill(0)


def test_start_may_be_called_again(make_pool, ask):
    pool = make_pool()
    pool.start()
    first = pool.template_pid
    pool.start()
    assert pool.template_pid == first
    assert ask(pool, "ping") == ("ping",)
    assert "started" in repr(pool)


def test_close_ends_everything(make_pool, ask):
    pool = make_pool(2)
    pids = [ask(pool, "describe", worker=worker)["pid"] for worker in range(2)]
    assert pids == [pool.pid(0), pool.pid(1)]
    pool.close()
    pool.close()
    assert not any(map(psutil.pid_exists, pids))
    assert "closed" in repr(pool)
    for use in (pool.start, lambda: pool.poll(0), lambda: pool.send(0, 1), lambda: pool.kill(0)):
        with pytest.raises(PoolError, match="closed"):
            use()
    pool.wake()


def test_close_ends_busy_workers(make_pool, ask):
    pool = make_pool()
    pid = ask(pool, "describe")["pid"]
    assert ask(pool, "run_task", 1, "spin") == ("began", 1)
    pool.close()
    assert not psutil.pid_exists(pid)


def test_close_at_once(make_pool):
    pool = make_pool(2)
    pool.start()
    pool.close()


def test_close_when_the_template_is_stuck(make_pool, ask, monkeypatch):
    monkeypatch.setattr(template_handle, "CLOSE_LIMIT", 0.1)
    monkeypatch.setattr(template_handle, "END_LIMIT", 0.1)
    pool = make_pool()
    pid = ask(pool, "describe")["pid"]
    os.kill(pool.template_pid, signal.SIGSTOP)
    worker = psutil.Process(pid)
    pool.close()
    _, alive = psutil.wait_procs([worker], timeout=LIMIT)
    assert not alive


def test_a_forgotten_pool_warns_and_closes(make_pool, ask):
    make_pool()  # for the path to `serving`
    pool = Pool(1, serve="serving:echo", preload=())
    ask(pool, "ping")
    with pytest.warns(ResourceWarning, match="never closed"):
        del pool


def test_a_pool_that_was_never_used_needs_no_close():
    Pool(1, serve="serving:echo")
    gc.collect()


@pytest.mark.parametrize("number", [0, -1])
def test_a_pool_needs_workers(number):
    with pytest.raises(ValueError, match="at least one worker"):
        Pool(number, serve="serving:echo")


def test_windows_is_told(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotImplementedError, match="get_sync") as info:
        Pool(1, serve="serving:echo")
    assert isinstance(info.value, UnsupportedPlatform)
    assert isinstance(info.value, GraphmillError)


@pytest.mark.parametrize("attribute", ["executable", "frozen"])
def test_a_program_without_interpreter_is_told(make_pool, monkeypatch, attribute):
    monkeypatch.setattr(sys, attribute, "" if attribute == "executable" else True, raising=False)
    with pytest.raises(PoolError, match="interpreter"):
        make_pool().start()


def test_an_interpreter_that_is_gone(make_pool, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    pool = make_pool()
    for _ in range(2):
        with pytest.raises(PoolError, match="cannot be started"):
            pool.start()


def test_an_interpreter_that_goes_away(make_pool, monkeypatch):
    pool = make_pool()
    pool.start()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    os.kill(pool.template_pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(PoolError, match="cannot be started"):
            pool.poll(LIMIT)


# ---- what workers find


def test_worker_knows_itself(make_pool, ask):
    pool = make_pool(2, setup={"arena": 7})
    for worker in range(2):
        found = ask(pool, "describe", worker=worker)
        assert found["number"] == worker
        assert found["setup"] == {"arena": 7}
        assert found["argv"] == sys.argv


def test_worker_shares_nothing_it_should_not(make_pool, ask):
    pool = make_pool(3)
    found = [ask(pool, "describe", worker=worker) for worker in range(3)]
    for each in found:
        assert len(each["sockets"]) == 1
        assert each["inheritable"] == [0, 1, 2]
        assert each["threads"] == 1
        assert each["input"] == ""
        assert each["main"] == []
        assert each["session"] not in (os.getsid(0), each["pid"])
    assert len({each["sockets"][0] for each in found}) == 3
    # The one that replaces another starts when all others are there.
    pool.kill(1)
    assert until_died(pool).signal == KILLED
    pool.restart(1)
    assert len(ask(pool, "describe", worker=1)["sockets"]) == 1


def test_the_terminals_ctrl_c_does_not_reach_the_workers(make_pool, ask):
    """It goes to a group of processes; they are in another."""
    pool = make_pool()
    pid = ask(pool, "describe")["pid"]
    assert os.getpgid(pid) == pid
    assert os.getsid(pid) == pool.template_pid


def test_hashes_agree_and_random_numbers_do_not(make_pool, ask):
    pool = make_pool(3, preload=["numpy", "numpy.random"])
    found = [ask(pool, "describe", worker=worker) for worker in range(3)]
    assert len({each["hash"] for each in found}) == 1
    assert len({each["random"] for each in found}) == 3
    assert len({each["numpy random"] for each in found}) == 3


def test_worker_uses_one_thread(make_pool, ask, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    found = ask(make_pool(), "describe")["environment"]
    assert found["OMP_NUM_THREADS"] == found["OPENBLAS_NUM_THREADS"] == found["NUMBA_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_worker_follows_where_the_parent_goes(make_pool, ask, monkeypatch, tmp_path):
    pool = make_pool()
    assert ask(pool, "describe")["folder"] == str(Path.cwd())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, "/somewhere", Path("/not a string")])
    found = ask(pool, "describe")
    assert found["folder"] == str(tmp_path)
    assert found["path"][-1] == "/somewhere"
    pool.kill(0)
    until_died(pool)
    pool.restart(0)
    assert ask(pool, "describe")["folder"] == str(tmp_path)


def test_a_working_directory_that_is_gone(make_pool, ask, monkeypatch, tmp_path):
    folder = tmp_path / "short-lived"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pool = make_pool()
    assert ask(pool, "ping") == ("ping",)
    folder.rmdir()
    assert ask(pool, "ping") == ("ping",)


def test_output_is_the_parents(make_pool, ask, capfd):
    assert ask(make_pool(), "say", "a word from a task") == "said"
    captured = capfd.readouterr()
    assert captured.out == captured.err == "a word from a task"


@pytest.mark.parametrize(
    ("order", "expected", "said"),
    [
        (("leave", 7), (7, None), ""),
        (("stop_serving", 5), (5, None), ""),
        (("stop_serving", None), (0, None), ""),
        (("stop_serving", "words"), (1, None), ""),
        (("crash",), (1, None), "ZeroDivisionError: a fault in serve"),
        (("signal_oneself", signal.SIGTERM), (None, signal.SIGTERM), ""),
        (("signal_oneself", signal.SIGSEGV), (None, signal.SIGSEGV), ""),
    ],
)
def test_worker_ends_as_serve_ends(make_pool, capfd, order, expected, said):
    pool = make_pool()
    pool.send(0, order)
    died = until_died(pool)
    assert (died.exitcode, died.signal) == expected
    assert said in capfd.readouterr().err


# ---- messages


def test_both_sides_send_more_than_fits(make_pool, collect):
    pool = make_pool()
    size = 20_000_000
    pool.send(0, ("flood", size), b"y" * size)
    events = collect(pool, 3)
    assert [len(message) for _, message in events] == [size, len("flooded"), size]


def test_a_message_that_does_not_pickle(make_pool, ask):
    pool = make_pool()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pool.send(0, lambda: None)
    assert ask(pool, "ping") == ("ping",)


def test_poll_ends_in_time(make_pool, ask):
    pool = make_pool()
    ask(pool, "ping")
    assert pool.poll(0) == []
    assert pool.poll(0.001) == []


def test_wake_ends_a_poll(make_pool, ask):
    pool = make_pool()
    ask(pool, "ping")
    thread = threading.Thread(target=pool.wake)
    thread.start()
    assert pool.poll(LIMIT) == []
    thread.join(LIMIT)


def test_wake_before_poll_is_not_lost(make_pool, ask):
    pool = make_pool()
    pool.wake()
    assert pool.poll(LIMIT) == []
    ask(pool, "ping")
    for _ in range(10_000):
        pool.wake()  # more than fit in any buffer
    assert pool.poll(LIMIT) == []


# ---- death


def test_killed_worker_is_told_once_and_replaced(make_pool, ask, collect, monkeypatch):
    # What the template says must be enough: by that limit, a channel that has ended would show it, too.
    monkeypatch.setattr(supervisor, "END_LIMIT", 1_000.0)
    pool = make_pool(2)
    pid = ask(pool, "describe")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert collect(pool, 1) == [(0, Died(pid, None, KILLED))]
    assert pool.pid(0) is None
    assert pool.poll(0) == []
    with pytest.raises(PoolError, match="dead"):
        pool.send(0, "ping")
    pool.kill(0)
    pool.interrupt(0)
    assert ask(pool, "ping", worker=1) == ("ping",)
    pool.restart(0)
    assert ask(pool, "describe")["pid"] != pid
    assert ask(pool, "ping", worker=1) == ("ping",)


def test_only_the_dead_are_replaced(make_pool, ask):
    pool = make_pool()
    with pytest.raises(PoolError, match="not dead"):
        pool.restart(0)
    ask(pool, "ping")
    with pytest.raises(PoolError, match="not dead"):
        pool.restart(0)


def test_last_words_come_before_the_death(make_pool, collect):
    pool = make_pool()
    pool.send(0, ("say_and_die", 500), "never read")
    events = collect(pool, 501)
    assert [message for _, message in events[:-1]] == list(range(500))
    assert events[-1][1].signal == KILLED
    assert pool.poll(0) == []


def test_last_words_that_nobody_has_read_yet(make_pool, ask, collect, monkeypatch):
    """The template's word may be heard first."""
    pool = make_pool()
    ask(pool, "ping")
    monkeypatch.setattr(supervisor.Supervisor, "on_worker", lambda *args: None)
    pool.send(0, ("say_and_die", 50))
    events = collect(pool, 51)
    assert [message for _, message in events[:-1]] == list(range(50))
    assert events[-1][1].signal == KILLED


def test_messages_to_a_dying_worker_go_nowhere(make_pool, ask):
    pool = make_pool()
    worker = psutil.Process(ask(pool, "describe")["pid"])
    worker.kill()
    psutil.wait_procs([worker], timeout=LIMIT)
    pool.send(0, "ping")
    pool.send(0, b"x" * 1_000_000)
    assert until_died(pool).signal == KILLED


def end(pid):
    """End a process that a test has left running, and wait for that."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.kill()
        psutil.wait_procs([process], timeout=LIMIT)


@pytest.mark.parametrize(
    "end_worker", [Pool.close, lambda pool: pool.kill(0), lambda pool: pool.send(0, ("leave", 0))]
)
def test_what_a_task_has_started_ends_with_its_worker(make_pool, ask, end_worker):
    pool = make_pool()
    program = psutil.Process(ask(pool, "start_program"))
    end_worker(pool)
    assert psutil.wait_procs([program], timeout=LIMIT) == ([program], [])


def test_a_process_left_behind_does_not_hide_a_death(make_pool, collect):
    """It keeps the worker's end of the channel open, so that the channel does not end."""
    pool = make_pool()
    pool.send(0, ("leave_child_behind",))
    (_, left), (_, died) = collect(pool, 2)
    assert (died.exitcode, died.signal) == (3, None)
    end(left)


def test_a_worker_that_closes_its_channel_is_ended(make_pool, monkeypatch):
    monkeypatch.setattr(supervisor, "END_LIMIT", 0.05)
    pool = make_pool()
    pool.send(0, ("deafen",))
    assert until_died(pool).signal == KILLED


class FaultySocket:
    """Raises once, as a handler of a signal may, after bytes have moved."""

    def __init__(self, sock, method):
        self.sock = sock
        self.method = method

    def __getattr__(self, name):
        return self.fail if name == self.method else getattr(self.sock, name)

    def fail(self, *args):
        method, self.method = self.method, None
        getattr(self.sock, method)(*args)
        raise TimeoutError("by a signal")


@pytest.mark.parametrize("method", ["send", "recv_into"])
def test_a_channel_that_lost_its_place_costs_the_worker(make_pool, ask, method):
    pool = make_pool()
    ask(pool, "ping")
    channel = pool._workers[0].channel
    channel._socket = FaultySocket(channel._socket, method)
    with pytest.raises(TimeoutError):
        ask(pool, "lost")
    pool.send(0, "also lost")
    assert until_died(pool).signal == KILLED
    pool.restart(0)
    assert ask(pool, "ping") == ("ping",)


def test_a_lost_control_channel_costs_the_template(make_pool, ask):
    pool = make_pool()
    ask(pool, "ping")
    control = pool._template.channel
    control._socket = FaultySocket(control._socket, "recv_into")
    pool.send(0, ("leave", 1))
    with pytest.raises(TimeoutError):
        until_died(pool)
    assert until_died(pool).signal == KILLED
    pool.restart(0)
    assert ask(pool, "ping") == ("ping",)


def test_a_template_that_hears_nonsense_is_replaced(make_pool, ask, collect, capfd):
    """It could not hear of its parent's end either, and would stay for ever."""
    pool = make_pool(1)
    assert ask(pool, "ping") == ("ping",)
    template = psutil.Process(pool.template_pid)
    nonsense = b"no pickle"
    pool._template.channel._socket.sendall(len(nonsense).to_bytes(8, "little") + nonsense)
    assert [type(message) for _, message in collect(pool, 1)] == [Died]
    with contextlib.suppress(psutil.NoSuchProcess):
        template.wait(LIMIT)
    assert pool.poll(0) == []  # takes note of that
    assert pool.template_pid is None
    pool.restart(0)
    assert ask(pool, "ping") == ("ping",)
    assert "is no message" in capfd.readouterr().err


def test_killed_template_is_replaced(make_pool, ask, collect):
    pool = make_pool(2)
    pids = [ask(pool, "describe", worker=worker)["pid"] for worker in range(2)]
    template = pool.template_pid
    os.kill(template, signal.SIGKILL)
    events = sorted(collect(pool, 2))
    assert events == [(worker, Died(pid, None, KILLED)) for worker, pid in enumerate(pids)]
    assert pool.poll(0) == []
    assert pool.template_pid is None
    for worker in range(2):
        pool.restart(worker)
    assert pool.template_pid not in (None, template)
    for worker in range(2):
        assert ask(pool, "ping", worker=worker) == ("ping",)


def test_template_and_a_worker_killed_together(make_pool, ask, collect):
    pool = make_pool(2)
    pids = [ask(pool, "describe", worker=worker)["pid"] for worker in range(2)]
    os.kill(pids[1], signal.SIGKILL)
    os.kill(pool.template_pid, signal.SIGKILL)
    assert sorted(number for number, _ in collect(pool, 2)) == [0, 1]
    assert pool.poll(0) == []


def test_last_words_come_before_a_death_with_the_template(make_pool, ask, collect):
    pool = make_pool(2)
    pids = [ask(pool, "describe", worker=worker)["pid"] for worker in range(2)]
    for number in range(100):
        pool.send(1, number)
    pool.send(1, ("signal_process", pool.template_pid, KILLED))
    events = []
    while sum(isinstance(message, Died) for _, message in events) < 2:
        events += collect(pool, 1)
    of_one = [message for number, message in events if number == 1]
    assert of_one[:100] == list(range(100))
    assert of_one[-1] == Died(pids[1], None, KILLED)
    assert pool.poll(0) == []


def test_a_process_left_behind_does_not_hide_a_death_with_the_template(make_pool, collect, monkeypatch):
    monkeypatch.setattr(supervisor, "END_LIMIT", 0.2)
    pool = make_pool(2)
    pool.send(0, ("leave_child_behind",))
    (_, left), _ = collect(pool, 2)
    pool.restart(0)
    os.kill(pool.template_pid, signal.SIGKILL)
    assert sorted(number for number, _ in collect(pool, 2)) == [0, 1]
    end(left)


def test_template_killed_while_it_starts(make_pool, ask):
    """Nothing was forked yet: another template does it, and nobody notices."""
    pool = make_pool(2)
    pool.send(0, ("describe",))
    os.kill(pool.template_pid, signal.SIGKILL)
    [(number, found)] = pool.poll(LIMIT)
    assert (number, found["number"]) == (0, 0)
    assert ask(pool, "ping", worker=1) == ("ping",)


def test_template_that_never_gets_ready(make_pool, monkeypatch):
    monkeypatch.setattr(launch, "_BOOTSTRAP", "raise SystemExit(3)")
    pool = make_pool(2)
    for _ in range(2):
        with pytest.raises(PoolError, match="again and again"):
            pool.poll(LIMIT)


@pytest.mark.parametrize("serve", ["serving:no_such_function", "no_such_module:serve", "os:sep", "os"])
def test_serve_that_cannot_be_had(make_pool, serve):
    pool = make_pool(serve=serve)
    for _ in range(2):
        with pytest.raises(PoolError, match=f"Workers cannot run {serve}"):
            pool.poll(LIMIT)


def test_a_setup_that_cannot_be_read(make_pool, capfd):
    pool = make_pool(setup=Unreadable())
    assert until_died(pool).exitcode == 1
    assert "cannot be read" in capfd.readouterr().err


class Unreadable:
    def __reduce__(self):
        return eval, ("(_ for _ in ()).throw(ValueError('cannot be read'))",)


# ---- interrupts


def test_interrupt_ends_a_task_and_not_the_worker(make_pool, ask, collect):
    pool = make_pool()
    pid = ask(pool, "describe")["pid"]
    for number in range(3):
        assert ask(pool, "run_task", number, "spin") == ("began", number)
        pool.interrupt(0, number)
        assert collect(pool, 1) == [(0, ("interrupted", number))]
    assert ask(pool, "describe")["pid"] == pid


def test_interrupt_may_come_before_its_task(make_pool, collect):
    pool = make_pool()
    pool.start()
    pool.interrupt(0, 5)
    pool.send(0, ("run_task", 4, "add", 1, 2), ("run_task", 5, "spin"))
    replies = [message for _, message in collect(pool, 4)]
    assert replies == [("began", 4), ("done", 4, 3), ("began", 5), ("interrupted", 5)]


def test_late_interrupt_hits_no_other_task(make_pool, collect):
    pool = make_pool()
    for number in range(100):
        pool.send(0, ("run_task", number, "add", number, 0))
        assert collect(pool, 2)[1] == (0, ("done", number, number))
        pool.interrupt(0, number)


def test_interrupt_while_idle_is_forgotten(make_pool, ask, collect):
    pool = make_pool()
    ask(pool, "ping")
    pool.send(0, ("await_idle_interrupt",))
    pool.interrupt(0)
    assert collect(pool, 1) == [(0, "dealt with")]
    pool.send(0, ("run_task", 1, "add", 1, 2))
    assert collect(pool, 2)[1] == (0, ("done", 1, 3))


def test_stray_signals_change_nothing(make_pool, ask, collect):
    pool = make_pool()
    pid = ask(pool, "describe")["pid"]
    os.kill(pid, signal.SIGINT)
    pool.send(0, ("run_task", 1, "interrupt_oneself"))
    assert [message for _, message in collect(pool, 2)] == [("began", 1), ("done", 1, "went on")]
    assert ask(pool, "describe")["pid"] == pid


def test_a_new_worker_is_not_hit_by_its_predecessors_interrupt(make_pool, ask, collect):
    pool = make_pool()
    ask(pool, "ping")
    pool.interrupt(0, 7)
    pool.kill(0)
    until_died(pool)
    pool.restart(0)
    pool.send(0, ("run_task", 7, "add", 1, 2))
    assert collect(pool, 2)[1] == (0, ("done", 7, 3))


def test_kill_ends_a_worker(make_pool, ask):
    pool = make_pool()
    assert ask(pool, "run_task", 1, "spin") == ("began", 1)
    pool.kill(0)
    assert until_died(pool).signal == KILLED


def test_kill_may_come_at_once(make_pool):
    pool = make_pool()
    pool.start()
    pool.kill(0)
    assert until_died(pool).signal == KILLED


@pytest.mark.parametrize("held", [False, True])
def test_ctrl_c_ends_a_poll_and_loses_nothing(make_pool, ask, held):
    pool = make_pool()
    ask(pool, "ping")
    with InterruptHold() if held else contextlib.nullcontext():
        events = []
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come as early as within send
            pool.send(0, ("signal_process", os.getpid(), signal.SIGINT))
            while True:
                events += pool.poll(LIMIT)
        events += [] if events else pool.poll(LIMIT)
    assert events == [(0, "sent")]
    assert ask(pool, "ping") == ("ping",)


# ---- the user's process forks


def test_a_forked_process_leaves_the_pool_alone(make_pool, ask):
    pool = make_pool(2)
    ask(pool, "ping")
    assert exit_code_of_child(pool) == 0
    for worker in range(2):
        assert ask(pool, "ping", worker=worker) == ("ping",)


def test_a_pool_made_before_a_fork_and_not_started(make_pool, ask):
    pool = make_pool()
    assert exit_code_of_child(pool) == 0
    assert ask(pool, "ping") == ("ping",)


def exit_code_of_child(pool):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = misuse(pool)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def misuse(pool):
    uses = (
        pool.start,
        lambda: pool.poll(0),
        lambda: pool.send(0, 1),
        lambda: pool.kill(0),
        lambda: pool.restart(0),
    )
    for use in uses:
        with pytest.raises(PoolError, match="another one"):
            use()
    pool.close()
    pool.wake()
    return 0


# ---- what is imported beforehand


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Write modules that workers can import."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source=""):
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


START_THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"


def modules(ask, pool):
    return set(ask(pool, "describe")["modules"])


def test_modules_are_imported_beforehand(make_pool, ask, library):
    pool = make_pool(preload=[library("good_library")])
    assert "good_library" in modules(ask, pool)
    assert pool.left_out == {}


def test_the_parents_libraries_are_imported_by_default(make_pool, ask):
    import numpy as np

    assert np.__name__ in sys.modules
    assert "numpy" in modules(ask, make_pool(preload=None))


@pytest.mark.parametrize(
    "source", ["raise ValueError('broken')", "import no_such_module", "raise SystemExit(1)", "a b"]
)
def test_a_broken_library_breaks_nothing(make_pool, ask, library, source):
    pool = make_pool(preload=[library("bad_library", source), library("good_library")])
    assert {"good_library"} == modules(ask, pool) & {"good_library", "bad_library"}
    assert "cannot be imported" in pool.left_out["bad_library"]


def test_a_library_that_starts_a_thread_is_left_out(make_pool, ask, library):
    threaded = library("threaded_library", START_THREAD)
    preload = [library("good_library"), threaded, library("other_library")]
    pool = make_pool(preload=preload)
    found = ask(pool, "describe")
    assert set(preload) & set(found["modules"]) == {"good_library", "other_library"}
    assert found["threads"] == 1
    assert list(pool.left_out) == [threaded]
    # The next pool knows.
    pool = make_pool(preload=preload)
    assert set(preload) & modules(ask, pool) == {"good_library", "other_library"}
    assert list(pool.left_out) == [threaded]


def test_a_library_that_imports_such_a_library_is_left_out(make_pool, ask, library):
    preload = [
        library("good_library"),
        library("threaded_library", START_THREAD),
        library("dependent_library", "import threaded_library"),
        library("other_library", "import dependent_library"),
    ]
    pool = make_pool(preload=preload)
    found = ask(pool, "describe")
    assert set(preload) & set(found["modules"]) == {"good_library"}
    assert found["threads"] == 1
    assert set(pool.left_out) == set(preload[1:])


def test_a_thread_that_ends_is_no_reason(make_pool, ask, library):
    source = "import threading\nthread = threading.Thread(target=int)\nthread.start()\nthread.join()\n"
    pool = make_pool(preload=[library("quick_library", source)])
    assert "quick_library" in modules(ask, pool)


def test_a_thread_that_starts_late(make_pool, ask, collect, library):
    """After the first fork: the template is given up, and with it the worker that it has."""
    source = "import os\n\ndef start():\n    " + START_THREAD.replace("\n", "\n    ")
    preload = [library("late_library", source + "\nos.register_at_fork(before=start)\n")]
    pool = make_pool(2, preload=preload)
    events = collect(pool, 2)
    assert sorted((number, died.signal) for number, died in events) == [(0, KILLED), (1, KILLED)]
    for worker in range(2):
        pool.restart(worker)
    assert "late_library" not in modules(ask, pool)
    assert list(pool.left_out) == preload


@pytest.mark.parametrize("last_words", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_a_library_that_ends_the_process_is_left_out(make_pool, ask, library, last_words):
    preload = [library("good_library"), library("deadly_library", f"import os\n{last_words}")]
    pool = make_pool(preload=preload)
    assert set(preload) & modules(ask, pool) == {"good_library"}
    assert list(pool.left_out) == ["deadly_library"]


def test_a_library_that_blocks_is_left_out(make_pool, ask, library):
    preload = [library("good_library"), library("slow_library", "import signal\nsignal.pause()")]
    pool = make_pool(preload=preload)
    pool.start()
    deadline = time.monotonic() + LIMIT
    while pool._template.preloads._importing != "slow_library" and time.monotonic() < deadline:
        pool.poll(0.01)
    pool._template.start_deadline = time.monotonic()  # as if it had taken long
    assert set(preload) & modules(ask, pool) == {"good_library"}
    assert list(pool.left_out) == ["slow_library"]


def test_serve_that_starts_a_thread_is_run_all_the_same(make_pool, ask, library):
    library("threaded_serving", START_THREAD + "from serving import echo")
    pool = make_pool(serve="threaded_serving:echo", preload=[library("good_library")])
    assert "good_library" in modules(ask, pool)


def test_a_system_without_processes_is_told(make_pool, library):
    source = "import os\n\ndef fork():\n    raise BlockingIOError(11, 'too many')\n\nos.fork = fork"
    pool = make_pool(preload=[library("forkless_library", source)])
    with pytest.raises(PoolError, match=r"Worker 0 cannot be started: .*too many"):
        pool.poll(LIMIT)
    with pytest.raises(PoolError, match="too many"):
        pool.poll(0)


def test_a_system_without_processes_is_asked_again(make_pool, ask, library, caplog):
    source = """
import os

real, refusals = os.fork, [1, 2]

def fork():
    if refusals:
        refusals.pop()
        raise BlockingIOError(11, "too many")
    return real()

os.fork = fork
"""
    pool = make_pool(preload=[library("seldom_forking_library", source)])
    assert ask(pool, "hello") == ("hello",)
    assert sum("tried again soon" in record.message for record in caplog.records) == 2


# ---- files


def test_files_stay_when_the_pool_is_closed(make_pool, ask, tmp_path):
    """Whoever closes it has cleaned up, or means to keep them."""
    kept, other = (tmp_path / f"graphmill-{os.getpid()}-{name}" for name in ("kept", "other"))
    kept.mkdir()
    pool = make_pool()
    pool.guard(kept)
    ask(pool, "ping")
    pool.guard(str(other))
    pool.unguard(other)
    pool.close()
    assert kept.exists()


def test_a_template_that_has_only_lost_its_parent_leaves_the_files(make_pool, ask, tmp_path, monkeypatch):
    # So that it ends by itself, however busy the machine.
    monkeypatch.setattr(template_handle, "END_LIMIT", 30.0)
    pool = make_pool()
    ask(pool, "ping")
    kept = tmp_path / f"graphmill-{os.getpid()}-kept"
    kept.mkdir()
    pool.guard(kept)
    template = psutil.Process(pool.template_pid)
    pool._template.let_go()
    assert not template.is_running()
    assert kept.is_dir()
