"""Engines under attack, shortly; `scripts/chaos` does it at length."""

import gc
import random

import pytest

pytest.importorskip("dask.array")
pytest.importorskip("scipy")

from graphmill import Engine
from tests.chaos.outside import interrupt, kill_parent
from tests.chaos.tormentor import Tormentor
from tests.chaos.workloads import draw, same
from tests.engine.conftest import new_traces, traces


def test_workers_die_and_stand_still_and_results_are_right():
    before = traces()
    chance = random.Random(20)
    with Engine(3, retries=20) as engine:
        for _ in range(3):
            name, work = draw(chance)
            expected = work.compute(scheduler=engine.get)
            with Tormentor(engine, chance, pause=0.15) as tormentor:
                found = work.compute(scheduler=engine.get)
                while not tormentor.kills:
                    found = work.compute(scheduler=engine.get)
            assert same(found, expected), name
        del expected, found
        gc.collect()
        assert engine.blocks.live == 0
    assert new_traces(before) == {}


@pytest.mark.parametrize("phase", ["starting", "computing", "spilling", "closing"])
def test_a_program_that_is_killed_leaves_nothing(phase, tmp_path):
    kill_parent(phase, random.Random(phase), tmp_path, limit=20)


def test_ctrl_c_at_any_moment(tmp_path):
    assert len(interrupt(3, random.Random(3), tmp_path)) == 3
