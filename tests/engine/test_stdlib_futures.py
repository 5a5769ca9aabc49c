"""The standard library's own tests of executors, on ours; where they are installed, from Python 3.13 on.

What cannot be told of an executor but by how the standard library's is built is left out, each with its
reason; `test_executor.py` and `test_executor_failures.py` have the same cases for ours.
"""

from __future__ import annotations

import unittest
from typing import Any

import pytest

import graphmill
from tests.engine.conftest import new_traces, traces

pytest.importorskip("test.test_concurrent_futures.util", reason="these tests come with Python 3.13")
as_completed, executor, initializers, process_pool, shutdown, util, wait = (
    pytest.importorskip(f"test.test_concurrent_futures.{name}")
    for name in (
        "test_as_completed",
        "executor",
        "test_init",
        "test_process_pool",
        "test_shutdown",
        "util",
        "test_wait",
    )
)

_INSIDE = "looks at attributes that only the standard library's executor has"
_BY_NAME = "its script imports the executor by name from concurrent.futures"
_REPLACED = "an executor is not broken by a worker that dies: another takes its place"

LEFT_OUT = {
    "test_max_workers_negative": "the parameter is num_workers, and its errors are ours",
    "test_killed_child": _REPLACED,
    "test_traceback": "the frames of the worker are in the traceback itself, not in a text that is its cause",
    "test_saturation": _INSIDE,
    "test_idle_process_reuse_one": _INSIDE,
    "test_idle_process_reuse_multiple": _INSIDE,
    "test_max_tasks_per_child": "workers do not end after so many calls",
    "test_max_tasks_per_child_defaults_to_spawn_context": "workers do not end after so many calls",
    "test_max_tasks_early_shutdown": "workers do not end after so many calls",
    "test_python_finalization_error": _INSIDE,
    "test_cancel_futures": "counts on a call that is begun before the next is submitted",
    "test_interpreter_shutdown": _BY_NAME,
    "test_submit_after_interpreter_shutdown": _BY_NAME,
    "test_hang_gh83386": _BY_NAME,
}


class Executor(graphmill.Executor):
    """The executor, with the parameters of the standard library's."""

    def __init__(self, max_workers: int | None = None, mp_context: Any = None, **options: Any) -> None:
        del mp_context
        super().__init__(max_workers, **options)


class OnOurs(util.ExecutorMixin):
    """Has tests make ours; a context is for what they share with workers."""

    executor_type = Executor
    worker_count = 2
    ctx = "fork"

    def setUp(self):
        if self._testMethodName in LEFT_OUT:
            self.skipTest(LEFT_OUT[self._testMethodName])
        self.before = traces()
        super().setUp()
        self.executor.submit(int).result()  # some count on workers that are there at once

    def tearDown(self):
        super().tearDown()
        left = new_traces(self.before)
        left.pop("children", None)  # the standard library's managers end when they are collected
        assert not left


class ExecutorTest(OnOurs, process_pool.ProcessPoolExecutorTest, unittest.TestCase):
    """What is submitted, mapped and let go of."""


class AsCompletedTest(OnOurs, as_completed.AsCompletedTests, unittest.TestCase):
    """Futures as they are done."""


class WaitTest(OnOurs, wait.WaitTests, unittest.TestCase):
    """Waiting for some or all."""


class ShutdownTest(OnOurs, shutdown.ExecutorShutdownTest, unittest.TestCase):
    """The end of an executor."""


class InitializerTest(OnOurs, initializers.InitializerMixin, unittest.TestCase):
    """What is called first in each worker."""


def test_nothing_is_left_out_that_is_not_there():
    names = {name for case in (ExecutorTest, ShutdownTest) for name in dir(case)}
    assert names >= LEFT_OUT.keys()
