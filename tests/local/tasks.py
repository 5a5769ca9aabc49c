"""Functions for tests to run where only a module's functions can go: in other processes.

Imports nothing heavy, for each worker process imports it.
"""

import os
import threading


def inc(x):
    return x + 1


def add(x, y):
    return x + y


def total(parts):
    return sum(parts)


def fail(*args):
    raise ZeroDivisionError("the task's own words")


class Stubborn(Exception):
    """An exception that can be pickled, and not be built again."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_stubbornly(*args):
    raise Stubborn("one", "two")


def make_lambda(*args):
    return lambda: None


def fail_with_lambda(*args):
    raise ValueError("holds a lambda", lambda: None)


class Refuses:
    """An object that can be pickled, and not be built again."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise RuntimeError("refuses to be unpickled")


def make_refusing(*args):
    return Refuses()


def pack_exception(error, dumps):
    return dumps((error, None))


def process_id(*args):
    return os.getpid()


def thread_id():
    return threading.get_ident()


def combine(*args):
    return ["combined", *args]
