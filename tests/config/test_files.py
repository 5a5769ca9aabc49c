"""Settings in files: which file, which machine, and what is said of mistakes."""

import os
import subprocess
import sys

import pytest

from graphmill import config
from graphmill.config import files
from graphmill.errors import ConfigError

TWO_MACHINES = """
memory_limit = "60%"

[machine."node-*"]
workers = 24
memory_limit = "96GB"

[machine.laptop]
workers = 3
"""


class TestMachines:
    @pytest.mark.parametrize(
        ("machine", "workers", "limit"),
        [
            ("node-7", 24, "96GB"),
            ("NODE-7", 24, "96GB"),
            ("node-7.cluster.example.org", 24, "96GB"),
            ("laptop", 3, "60%"),
            ("laptop.local", 3, "60%"),
            ("my-node-7", None, "60%"),
            ("elsewhere", None, "60%"),
        ],
    )
    def test_the_right_section_by_name(self, settings_files, machine, workers, limit):
        settings_files(project=TWO_MACHINES, machine=machine)
        assert config.get("num_workers") == workers
        assert config.get("memory_limit") == limit

    def test_by_host_name(self, settings_files, monkeypatch):
        settings_files(project=TWO_MACHINES)
        monkeypatch.setattr(files.socket, "gethostname", lambda: "node-1")
        assert config.get("num_workers") == 24
        monkeypatch.setattr(files.socket, "gethostname", lambda: "laptop")
        assert config.get("num_workers") == 3

    def test_a_later_section_goes_first(self, settings_files):
        text = '[machine."node-1"]\nworkers = 1\n[machine."node-*"]\nworkers = 2\n'
        settings_files(project=text, machine="node-1")
        assert config.get("num_workers") == 2

    def test_a_section_need_not_say_all(self, settings_files):
        text = 'spill_limit = 0\n[machine."n*"]\nworkers = 1\n[machine."*1"]\nwarm_limit = 0\n'
        settings_files(project=text, machine="n1")
        found = [config.get(name) for name in ("spill_limit", "num_workers", "warm_limit")]
        assert found == [0, 1, 0]

    def test_all_spellings_of_toml(self, settings_files):
        text = 'machine."a*".workers = 4\nmachine.b = { workers = 5 }\n'
        settings_files(project=text, machine="a1")
        assert config.get("num_workers") == 4
        settings_files(project=text, machine="b")
        assert config.get("num_workers") == 5


class TestWhere:
    def test_the_project_goes_before_the_user(self, settings_files):
        settings_files(user='workers = 2\nwarm_limit = "1MB"', project="workers = 3")
        assert config.get("num_workers") == 3
        assert config.get("warm_limit") == "1MB"

    def test_pyproject(self, settings_files):
        text = (
            '[project]\nname = "x"\n[tool.graphmill]\nworkers = 5\n[tool.graphmill.machine.m]\nworkers = 6\n'
        )
        settings_files(pyproject=text, machine="other")
        assert config.get("num_workers") == 5
        settings_files(pyproject=text, machine="m")
        assert config.get("num_workers") == 6

    def test_graphmill_toml_goes_before_pyproject(self, settings_files):
        settings_files(pyproject="[tool.graphmill]\nworkers = 5", project="warm_limit = 0")
        assert config.get("num_workers") is None
        assert config.get("warm_limit") == 0

    def test_found_from_below(self, settings_files, monkeypatch):
        project = settings_files(project="workers = 3")
        below = project / "a" / "b"
        below.mkdir(parents=True)
        (below.parent / "pyproject.toml").write_text('[project]\nname = "graphmill-user"\n')
        monkeypatch.chdir(below)
        config.refresh()
        assert config.get("num_workers") == 3

    def test_a_pyproject_that_is_not_ours_may_be_broken(self, settings_files):
        settings_files(pyproject="[tool.graphmill\n")
        assert config.get("num_workers") is None

    def test_the_working_folder_may_be_gone(self, settings_files, tmp_path, monkeypatch):
        settings_files(user="workers = 2")
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        config.refresh()
        assert config.get("num_workers") == 2

    def test_read_once_until_refreshed(self, settings_files):
        project = settings_files(project="workers = 3")
        assert config.get("num_workers") == 3
        (project / "graphmill.toml").write_text("workers = 4")
        assert config.get("num_workers") == 3
        config.refresh()
        assert config.get("num_workers") == 4

    def test_user_path(self, monkeypatch):
        monkeypatch.setenv("HOME", "/home/me")
        for chosen in ("", "relative/ones/are/ignored"):
            monkeypatch.setenv("XDG_CONFIG_HOME", chosen)
            monkeypatch.setattr(files.sys, "platform", "linux")
            assert str(files.user_path()) == "/home/me/.config/graphmill/graphmill.toml"
            monkeypatch.setattr(files.sys, "platform", "darwin")
            assert str(files.user_path()) == "/home/me/Library/Application Support/graphmill/graphmill.toml"
        monkeypatch.setenv("XDG_CONFIG_HOME", "/etc/me")
        assert str(files.user_path()) == "/etc/me/graphmill/graphmill.toml"

    def test_importing_reads_no_file(self, tmp_path):
        (tmp_path / "graphmill.toml").write_text("this is not TOML")
        source = (
            "import graphmill, sys; print('tomllib' in sys.modules, graphmill.config.SETTINGS.keys() != [])"
        )
        run = subprocess.run(
            [sys.executable, "-c", source],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert run.stdout.split()[1] == "True"


WRONG = [
    # (text, line, what is said)
    (
        "memory_limt = 4",
        1,
        "'memory_limt' is no setting (did you mean 'memory_limit'?); there are workers, num_",
    ),
    ("\n\nnum-workers = 4", 3, "'num-workers' is no setting (did you mean 'num_workers'?)"),
    ('cache = "x"', 1, "'cache' is no setting"),
    ('# x\nworkers = "many"', 2, '\'workers\' must be a whole number of at least 1, or "auto"; it is "many"'),
    ("workers = 0", 1, "'workers' must be a whole number of at least 1, or \"auto\"; it is 0"),
    ("workers = 2.0", 1, "'workers' must be a whole number"),
    ("workers = true", 1, "'workers' must be a whole number of at least 1, or \"auto\"; it is true"),
    ('memory_limit = "8 gigs"', 1, "'memory_limit' must be a number of bytes, or a text such as"),
    ('memory_limit = "63MiB"', 1, "(at least 64MiB)"),
    ("memory_limit = 0.5", 1, "'memory_limit' must be"),
    ('memory_limit = "0%"', 1, "'memory_limit' must be"),
    ("memory_per_worker = 0", 1, "'memory_per_worker' must be"),
    ('spill_limit = "-1GB"', 1, "'spill_limit' must be a number of bytes"),
    ("spill_folder = 7", 1, "'spill_folder' must be the name of a folder; it is 7"),
    ('rerun_exceptions_locally = "yes"', 1, 'must be true or false; it is "yes"'),
    ('[machines."node-*"]\nworkers = 4', 1, "'machines' is no setting (did you mean 'machine'?)"),
    ("[machine]\nworkers = 4", 2, "'workers' must stand in a section of a machine"),
    ("machine = 4", 1, "'machine' must be a table with a section per machine"),
    ('x = 1\n[machine."a"]\nworkers = 4', 1, "'x' is no setting"),
    (
        '[machine."a"]\nworkers = 4\n[machine."b"]\nworker = 5',
        4,
        "'worker' is no setting (did you mean 'workers'?)",
    ),
    ("[machine.node.example]\nworkers = 4", 1, "a name with dots needs quotes"),
    ("workers = 4\nnum_workers = 5", 2, "'num_workers' says the same as 'workers'"),
    ("workers = 4\nworkers 5", 2, "this is not valid TOML"),
    ('spill_folder = [\n  "a",\n]\n', 1, "'spill_folder' must be the name of a folder"),
    ('spill_folder = """\n\n"""\nwarm_limt = 0', 4, "did you mean 'warm_limit'"),
    ('machine.a.workers = "x"', 1, "'workers' must be"),
    ('machine.a = { memory_limit = "1GB", workers = "x" }', 1, "'workers' must be"),
]


class TestMistakes:
    @pytest.mark.parametrize(("text", "line", "said"), WRONG)
    def test_file_line_key_and_what_is_allowed(self, settings_files, text, line, said):
        project = settings_files(project=text)
        with pytest.raises(ConfigError) as caught:
            config.get("num_workers")
        assert str(caught.value).startswith(f"{project / 'graphmill.toml'}, line {line}")
        assert said in str(caught.value)

    def test_sections_of_other_machines_are_checked_too(self, settings_files):
        settings_files(project='[machine."x"]\nworkers = 0', machine="y")
        with pytest.raises(ConfigError, match="line 2"):
            config.get("num_workers")

    def test_lines_in_pyproject(self, settings_files):
        text = '[project]\ndependencies = [\n  "a",\n  "b",\n]\n\n[tool.graphmill]\nworkers = "x"\n'
        project = settings_files(pyproject=text)
        with pytest.raises(ConfigError) as caught:
            config.get("num_workers")
        assert str(caught.value).startswith(f"{project / 'pyproject.toml'}, line 8: 'workers' must be")

    def test_not_utf8(self, settings_files):
        project = settings_files()
        (project / "graphmill.toml").write_bytes(b'spill_folder = "\xff"')
        config.refresh()
        with pytest.raises(ConfigError, match="is not written in UTF-8"):
            config.get("num_workers")

    def test_an_engine_tells(self, settings_files):
        from graphmill import Engine

        settings_files(project="workers = 0")
        with pytest.raises(ConfigError, match="line 1: 'workers' must be"):
            Engine()
