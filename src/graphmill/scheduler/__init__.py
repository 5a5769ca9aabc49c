"""What to run next and what to let go: a pure state machine, driven by events."""

from graphmill.scheduler.machine import Options, Scheduler
from graphmill.scheduler.policy import Selection
from graphmill.scheduler.state import Listed, State, start_state

__all__ = ["Listed", "Options", "Scheduler", "Selection", "State", "start_state"]
