"""What templates import, after what has happened to those before."""

import pytest

from graphmill.workers import preload
from graphmill.workers.preload import ENDS_PROCESS, STARTS_THREAD, Preloads


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(preload, "_start_threads", set())


def test_only_what_is_loaded_and_listed():
    loaded = dict.fromkeys(["json", "dask.array", "numpy", "dask", "my_library"])
    assert Preloads().plan(loaded) == ("numpy", "dask", "dask.array")
    assert Preloads(["my_library"]).plan({}) == ("my_library",)
    assert Preloads([]).plan(loaded) == ()


def test_failed_imports_are_not_tried_again():
    preloads = Preloads("abc")
    assert preloads.plan({}) == ("a", "b", "c")
    preloads.importing("c")
    preloads.done([("b", "ImportError: no")])
    assert preloads.left_out == {"b": "cannot be imported: ImportError: no"}
    assert preloads.plan({}) == ("a", "c")


def test_threads_are_remembered_by_all():
    preloads = Preloads("abc")
    preloads.plan({})
    preloads.started_threads(["b"], ["a"], again=False)
    assert preloads.plan({}) == ("a", "c")
    other = Preloads("bd")
    assert other.plan({}) == ("d",)
    assert other.left_out == {"b": STARTS_THREAD}


def test_second_trouble_leaves_only_what_is_beyond_doubt():
    preloads = Preloads("abcd")
    preloads.plan({})
    preloads.started_threads(["b"], ["a"], again=False)
    assert preloads.plan({}) == ("a", "c", "d")
    preloads.started_threads(["c"], ["a"], again=True)
    assert preloads.plan({}) == ("a",)
    assert preloads.left_out["d"] == f"may import a module that {STARTS_THREAD}"


def test_death_is_blamed_on_what_was_being_imported():
    preloads = Preloads("abcd")
    preloads.plan({})
    preloads.importing("a")
    preloads.importing("b")
    preloads.died(again=False)
    assert preloads.left_out == {"b": ENDS_PROCESS}
    assert preloads.plan({}) == ("a", "c", "d")
    preloads.importing("c")
    preloads.died(again=True)
    assert preloads.plan({}) == ("a",)


def test_death_that_is_nobodys_fault():
    preloads = Preloads("ab")
    preloads.plan({})
    preloads.died(again=False)
    preloads.importing("b")
    preloads.done([])
    preloads.died(again=True)
    assert preloads.plan({}) == ("a", "b")


def test_at_last_nothing():
    assert Preloads("ab").plan([], nothing=True) == ()
