"""The most of something in the last seconds."""

import pytest

from graphmill.memory import recent
from graphmill.memory.recent import WINDOW, RecentMost


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on when it is told to, in seconds."""
    now = [50.0]
    monkeypatch.setattr(recent.time, "monotonic", lambda: now[0])
    return now


def test_the_largest_is_remembered_for_a_window_at_least_and_for_two_at_most(clock):
    most = RecentMost()
    most.note(7)
    most.note(3)
    assert most.most == 7
    clock[0] += WINDOW
    most.note(4)
    assert most.most == 7
    clock[0] += WINDOW / 2
    assert most.most == 7
    clock[0] += WINDOW / 2
    assert most.most == 4
    clock[0] += 2 * WINDOW
    assert most.most == 0, "nothing was noted for long"


def test_it_starts_anew_when_told_to(clock):
    most = RecentMost()
    most.note(7)
    most.start_with(2)
    assert most.most == 2
    clock[0] += WINDOW
    assert most.most == 2
