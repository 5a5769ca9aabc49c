"""SIGINT is raised where it was meant to be, and nowhere else."""

import signal
import threading

import pytest

from graphmill.workers.messages import ANY_TASK
from graphmill.workers.signals import InterruptHold, TaskInterrupts


@pytest.fixture(autouse=True)
def usual_handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_hold_delays_until_its_end():
    steps = []
    with pytest.raises(KeyboardInterrupt), InterruptHold():  # noqa: PT012 - where it is raised is the point
        ctrl_c()
        steps.append("inside")
    assert steps == ["inside"]


def test_hold_without_ctrl_c_changes_nothing():
    with InterruptHold() as hold:
        hold.open_window()
        hold.close_window()


def test_window_lets_through():
    steps = []
    with InterruptHold() as hold:
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            hold.open_window()
        ctrl_c()  # the window is shut again
        steps.append("held")
        with pytest.raises(KeyboardInterrupt):
            hold.open_window()
        hold.open_window()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()
        hold.open_window()
        hold.close_window()
    assert steps == ["held"]


def test_outermost_hold_counts():
    steps = []
    with InterruptHold() as outer:
        with InterruptHold():
            ctrl_c()
            steps.append("inner")
        steps.append("outer")
        with InterruptHold() as inner, pytest.raises(KeyboardInterrupt):
            inner.open_window()
        outer.open_window()  # nothing is left of it
    assert steps == ["inner", "outer"]


def test_who_insists_gets_through():
    with InterruptHold():
        ctrl_c()
        ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_hold_hands_over_to_any_handler():
    heard = []

    def handler(signum, frame):
        heard.append(signum)

    signal.signal(signal.SIGINT, handler)
    with InterruptHold():
        ctrl_c()
        assert heard == []
    assert heard == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_hold_leaves_a_handler_that_was_put_in_its_place():
    def handler(signum, frame):
        pass

    with InterruptHold():
        signal.signal(signal.SIGINT, handler)
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_hold_does_nothing_where_sigint_is_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with InterruptHold():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        ctrl_c()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_hold_does_nothing_in_other_threads():
    seen = []

    def work():
        with InterruptHold() as hold:
            hold.open_window()
            hold.close_window()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [signal.default_int_handler]


class Tasks:
    """A worker's interrupts, and the side of the template that announces them."""

    def __init__(self):
        self.slot = memoryview(bytearray(16)).cast("q")
        self.interrupts = TaskInterrupts(self.slot)

    def announce(self, task):
        self.slot[1] = task
        self.slot[0] += 1

    def interrupt(self, task):
        self.announce(task)
        ctrl_c()
        return "went on"

    def shielded(self, task):
        return self.interrupt(task)


@pytest.fixture
def tasks():
    before = signal.getsignal(signal.SIGINT)
    tasks = Tasks()
    tasks.interrupts.install()
    yield tasks
    signal.signal(signal.SIGINT, before)


def identity(value):
    return value


@pytest.mark.parametrize("meant", [5, ANY_TASK])
def test_task_is_interrupted(tasks, meant):
    with pytest.raises(KeyboardInterrupt):
        tasks.interrupts.run(5, tasks.interrupt, meant)
    assert tasks.interrupts.run(6, identity, 1) == 1


def test_task_is_called_with_its_arguments(tasks):
    assert tasks.interrupts.run(1, dict, [("a", 1)], b=2) == {"a": 1, "b": 2}


def test_another_task_is_not_interrupted(tasks):
    assert tasks.interrupts.run(6, tasks.interrupt, 5) == "went on"
    assert tasks.interrupts.run(7, identity, 1) == 1


def test_early_interrupt_waits_for_its_task(tasks):
    tasks.interrupt(5)
    assert tasks.interrupts.run(4, identity, 1) == 1
    with pytest.raises(KeyboardInterrupt):
        tasks.interrupts.run(5, identity, 1)


def test_interrupt_between_tasks_hits_none(tasks):
    tasks.interrupt(ANY_TASK)
    assert tasks.interrupts.run(0, identity, 1) == 1


def test_announced_before_but_signalled_within(tasks):
    tasks.announce(ANY_TASK)
    assert tasks.interrupts.run(0, ctrl_c) is None  # it was announced when no task ran


@pytest.mark.parametrize("task", [5, None])
def test_stray_signal_hits_none(tasks, task):
    if task is None:
        ctrl_c()
    else:
        assert tasks.interrupts.run(task, ctrl_c) is None


def test_task_that_goes_on_can_be_interrupted_again(tasks):
    def stubborn():
        with pytest.raises(KeyboardInterrupt):
            tasks.interrupt(5)
        tasks.interrupt(5)

    with pytest.raises(KeyboardInterrupt):
        tasks.interrupts.run(5, stubborn)


def test_shielded_code_is_not_left(tasks):
    tasks.interrupts.shield(Tasks.shielded)

    def task():
        assert tasks.shielded(5) == "went on"
        ctrl_c()  # the caller tries again

    with pytest.raises(KeyboardInterrupt):
        tasks.interrupts.run(5, task)


def test_a_failed_task_is_over(tasks):
    with pytest.raises(ZeroDivisionError):
        tasks.interrupts.run(5, divmod, 1, 0)
    tasks.interrupt(5)
