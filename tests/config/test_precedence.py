"""What goes first, where several places say something."""

import logging
import threading

import dask.config
import pytest

from graphmill import Engine, config
from graphmill.errors import ConfigError


def test_each_place_goes_before_the_next(settings_files, monkeypatch):
    found = []

    def look():
        found.append(config.get("num_workers"))

    settings_files(user="workers = 1\n[machine.m]\nworkers = 2\n", machine="m")
    look()
    settings_files(project="workers = 3\n[machine.m]\nworkers = 4\n", machine="m")
    look()
    with dask.config.set(num_workers=5):
        look()
        with dask.config.set({"graphmill.num_workers": 6}):
            look()
            monkeypatch.setenv("GRAPHMILL_NUM_WORKERS", "7")
            look()
            monkeypatch.setitem(config.options, "num_workers", 8)
            look()
            with config.set(num_workers=9):
                look()
                with Engine(10, memory_limit="64MiB") as engine:
                    found.append(engine.num_workers)
                order = [source.value for source in config.sources("num_workers") if source.value]
    assert found == [2, 4, 5, 6, 7, 8, 9, 10]
    assert order == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_sections_for_others_are_told_of_but_not_taken(settings_files):
    settings_files(project="[machine.a]\nworkers = 3\n[machine.b]\nworkers = 4\n", machine="a")
    told = [(source.value, source.elsewhere) for source in config.sources("num_workers") if source.value]
    assert told == [(4, True), (3, False)]
    assert config.get("num_workers") == 3


def test_auto_goes_before_what_is_further_away(settings_files, monkeypatch):
    settings_files(project="workers = 3")
    with config.set(num_workers="auto"):
        assert config.get("num_workers", 9) == 9
    monkeypatch.setenv("GRAPHMILL_NUM_WORKERS", "auto")
    assert config.get("num_workers", 9) == 9


class TestSet:
    def test_holds_without_a_block(self):
        chosen = config.set(warm_limit=5)
        assert config.get("warm_limit") == 5
        chosen.__exit__(None, None, None)
        assert config.get("warm_limit") is None

    def test_holds_in_all_threads(self):
        seen = []
        with config.set(num_workers=7):
            thread = threading.Thread(target=lambda: seen.append(config.get("num_workers")))
            thread.start()
            thread.join()
        assert seen == [7]

    def test_blocks_may_end_in_any_order(self):
        first, second = config.set(num_workers=2), config.set(num_workers=2)
        first.__exit__(None, None, None)
        assert config.get("num_workers") == 2
        second.__exit__(None, None, None)
        assert config.get("num_workers") is None


class TestAuto:
    @pytest.mark.parametrize(
        ("cpus", "limit", "each", "workers"),
        [
            (8, "8GiB", None, 8),
            (8, "1GiB", None, 4),
            (8, "100MB", None, 1),
            (8, "8GiB", "3GiB", 2),
            (2, "8GiB", 1, 2),
        ],
    )
    def test_cpus_and_memory(self, monkeypatch, cpus, limit, each, workers):
        monkeypatch.setattr("graphmill.engine.choices.available_cpus", lambda: cpus)
        monkeypatch.setattr("graphmill.engine.choices.total_memory", lambda: 64 << 30)
        with config.set(memory_per_worker=each):
            with Engine(memory_limit=limit) as engine:
                assert engine.num_workers == workers
            with Engine(5, memory_limit=limit) as engine:
                assert engine.num_workers == 5


class TestDask:
    @pytest.mark.parametrize("key", ["memory_limits", "memory-limits"])
    def test_what_is_no_setting(self, key):
        with (
            dask.config.set({f"graphmill.{key}": "1GB"}),
            pytest.raises(
                ConfigError,
                match=r"dask.config 'graphmill.memory.limits': There is no setting .*mean 'memory",
            ),
        ):
            config.get("memory_limit")

    def test_hyphens(self):
        with dask.config.set({"graphmill.memory-limit": "1GB"}):
            assert config.get("memory_limit") == "1GB"


class TestEnvironment:
    def test_variables_that_set_nothing(self, monkeypatch, caplog):
        monkeypatch.setenv("GRAPHMILL_MEMORY_LIMITS", "1GB")
        monkeypatch.setenv("GRAPHMILL_NO_COMPILER", "1")
        monkeypatch.setenv("GRAPHMILL_MACHINE", "x")
        config.refresh()
        with caplog.at_level(logging.WARNING, "graphmill"):
            config.get("memory_limit")
            config.get("memory_limit")
        assert [record.message for record in caplog.records] == [
            "the environment variable GRAPHMILL_MEMORY_LIMITS sets nothing "
            "(did you mean GRAPHMILL_MEMORY_LIMIT?)"
        ]

    @pytest.mark.parametrize("value", ["many", "0", "-1", "1.5", "True"])
    def test_wrong_values(self, monkeypatch, value):
        monkeypatch.setenv("GRAPHMILL_NUM_WORKERS", value)
        with pytest.raises(
            ConfigError, match="'num_workers' must be a whole number of at least 1, or \"auto\""
        ):
            config.get("num_workers")
