"""Warnings of tasks, and what the filters of the calling process make of them."""

import gc
import re
import warnings

import numpy as np
import pytest

from graphmill import Engine


@pytest.fixture(scope="module")
def engine():
    with Engine(num_workers=2) as made:
        yield made


def warn(part):
    warnings.warn("beware", UserWarning, stacklevel=1)
    return part + 1


GRAPH = {"x": (np.zeros, 400_000), "y": (warn, "x"), "z": (np.sum, "y")}


def test_a_warning_that_is_an_error_is_what_the_task_raised(engine):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="beware") as caught:
            engine.get(GRAPH, "z")
    assert caught.value.__notes__ == ["raised by the task 'y'"]
    del caught
    gc.collect()
    engine.look_after(())
    assert engine.blocks.live == 0
    with pytest.warns(UserWarning, match="beware"):
        assert engine.get(GRAPH, "z") == 400_000


@pytest.mark.parametrize("module", [__name__, "elsewhere"])
def test_filters_may_go_by_module(engine, module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=re.escape(module))
        engine.get(GRAPH, "z")
    assert [str(each.message) for each in caught] == ([] if module == __name__ else ["beware"])


def warn_and_fail():
    warnings.warn("beware", UserWarning, stacklevel=1)
    raise ZeroDivisionError("too late")


def test_warnings_of_a_task_that_fails_are_seen(engine):
    with pytest.warns(UserWarning, match="beware"), pytest.raises(ZeroDivisionError, match="too late"):
        engine.get({"x": (warn_and_fail,)}, "x")
