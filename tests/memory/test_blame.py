import threading
from functools import partial

import numpy as np
import pytest

from graphmill.errors import EncodeError
from graphmill.memory import blame
from graphmill.memory.codec import encode

LOCK = threading.Lock()
KIND = type(LOCK).__module__ + "." + type(LOCK).__qualname__


class Holder:
    def __init__(self, part):
        self.part = part

    def method(self):
        return self.part


class Slotted:
    __slots__ = ("part",)

    def __init__(self, part):
        self.part = part


class Refuses:
    def __reduce__(self):
        raise ValueError("not today")


class Reduces:
    def __reduce__(self):
        return Holder, (LOCK,)


class HasState:
    def __getstate__(self):
        return [LOCK]


class Items(dict):
    pass


def with_default(x=LOCK):
    return x


def message(value, **options):
    with pytest.raises(EncodeError) as info:
        encode(value, None, **options)
    return str(info.value)


def make_closure(x):
    return lambda: x


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "value"),
        ({"lock": LOCK}, "value['lock']"),
        ([1, (2, {"a": LOCK})], "value[1][1]['a']"),
        ({LOCK: 1}, "value key <unlocked _thread"),
        (Holder([Slotted(LOCK)]), "value.part[0].part"),
        (Holder(LOCK).method, "value.__self__.part"),
        (partial(max, LOCK), "value.args[0]"),
        (partial(max, key=LOCK), "value.keywords['key']"),
        (make_closure({"x": LOCK}), "value.__closure__['x']['x']"),
        (lambda: LOCK, "value.__globals__['LOCK']"),
        (lambda x=LOCK: x, "value.__defaults__[0]"),
        (lambda *, x=LOCK: x, "value.__kwdefaults__['x']"),
        (np.array([1, LOCK], dtype=object), "value.flat[1]"),
        (Reduces(), "value.__reduce__()[1][0]"),
        (HasState(), "value.__getstate__()[0]"),
        (Items(a=LOCK), "value['a']"),
        (type("Local", (), {"lock": LOCK}), "value.__dict__['lock']"),
        (ValueError("x", LOCK), "value.__reduce__()[1][1]"),
    ],
)
def test_names_the_part_and_its_type(value, path):
    text = message(value)
    assert text.startswith(f"Cannot send {path}")
    assert f"(a {KIND}) to another process: cannot pickle" in text


def test_names_an_object_that_fails_by_itself():
    assert (
        message([Refuses()]) == f"Cannot send value[0] (a {__name__}.Refuses) to another process: not today"
    )
    assert message(i for i in ()).startswith("Cannot send value (a generator) to another process")


def test_elements_of_sets():
    assert message({1, LOCK}).startswith("Cannot send value element <unlocked _thread")


def test_the_value_may_have_a_name():
    assert message([LOCK], name="args").startswith("Cannot send args[0] (a ")


def test_nesting_too_deep():
    value = []
    for _ in range(100_000):
        value = [value]
    assert "value (a list) to another process: it is nested too deeply" in message(value)
    while value:  # piece by piece: freeing it at once goes as deep
        value = value[0]


def test_values_that_contain_themselves():
    value = [1]
    value += [value, LOCK]
    assert "value[2] (a " in message(value)


def test_the_search_ends(monkeypatch):
    times = iter([0, 0, 0])

    monkeypatch.setattr(blame.time, "monotonic", lambda: next(times, 100))
    assert "Cannot send value (a list)" in message([(1,), (2,), (3,), LOCK])


def test_long_keys_are_shortened():
    assert len(message({"x" * 10_000: LOCK})) < 200
