"""The other commands: what they say, and what they end with."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from graphmill.cli import main, parser
from graphmill.cli.output import table
from tests.cli.conftest import LIMIT, environment

COMMANDS = [(), ("run",), ("info",), ("config",), ("clean",), ("bench",), ("completion",)]


class TestAll:
    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_help_has_examples(self, command, arguments):
        ended = command(*arguments, "--help")
        assert ended.code == 0
        assert "examples:" in ended.out
        assert max(map(len, ended.out.splitlines())) <= 110
        assert "\x1b" not in ended.out

    @pytest.mark.parametrize("arguments", COMMANDS)
    def test_help_fits_a_narrow_terminal(self, command, arguments):
        ended = command(*arguments, "--help", env={"COLUMNS": "80"})
        assert max(map(len, ended.out.splitlines())) <= 80

    def test_version(self, command):
        import graphmill

        assert command("--version").out == f"graphmill {graphmill.__version__}\n"

    @pytest.mark.parametrize("arguments", [(), ("none",), ("info", "--jso")])
    def test_wrong_usage(self, command, arguments):
        ended = command(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith("usage: graphmill")

    def test_nobody_reads(self, tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-m", "graphmill", "config"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            cwd=tmp_path,
        )
        process.stdout.close()
        with process.stderr:
            assert process.stderr.read() == b""
        assert process.wait(LIMIT) == 141


class TestInfo:
    def test_text(self, command, tmp_path):
        (tmp_path / "graphmill.toml").write_text("workers = 3\n")
        ended = command("info")
        assert ended.code == 0, ended.err
        assert "\x1b" not in ended.out
        assert f"3                 {tmp_path}/graphmill.toml, line 1 says 3" in ended.out
        for word in ("CPUs", "memory limit", "shared memory", "writes", "80% of what may be used"):
            assert word in ended.out

    def test_json(self, command):
        ended = command("info", "--json", "--no-disk-test", env={"GRAPHMILL_MEMORY_LIMIT": "300MB"})
        told = json.loads(ended.out)
        assert told["cpus"]["usable"] == len(os.sched_getaffinity(0))
        assert told["memory"]["machine"] >= told["memory"]["usable"] > 0
        assert told["disk"]["speed"] is None
        assert told["will_use"]["memory_limit"] == 300_000_000
        assert told["will_use"]["num_workers"] == 1
        assert told["will_use"]["why_memory_limit"].startswith("the environment variable GRAPHMILL_MEMORY_LI")

    def test_a_disk_is_measured(self, tmp_path):
        from graphmill.cli.disk import measure

        speed = measure(tmp_path)
        assert speed.write > 0
        assert speed.nbytes > 0
        assert list(tmp_path.iterdir()) == []


class TestConfig:
    def test_set_and_show(self, command, tmp_path):
        assert command("config", "set", "--user", "memory_limit", "60%").code == 0
        assert command("config", "set", "--machine", "no*", "workers", "24").code == 0
        assert command("config", "set", "workers", "3").code == 0
        assert (tmp_path / "home/graphmill/graphmill.toml").read_text() == 'memory_limit = "60%"\n'
        told = json.loads(command("config", "--json", env={"GRAPHMILL_MACHINE": "node"}).out)
        assert told["memory_limit"]["from"] == f"{tmp_path}/home/graphmill/graphmill.toml, line 1"
        assert told["num_workers"]["value"] == 24
        told = json.loads(command("config", "show", "--json", env={"GRAPHMILL_MACHINE": "other"}).out)
        assert told["num_workers"]["value"] == 3
        assert told["warm_limit"]["from"] == "default"

    def test_explain(self, command, tmp_path):
        (tmp_path / "graphmill.toml").write_text('workers = 3\n[machine."x*"]\nworkers = 4\n')
        ended = command("config", "explain", "workers", env={"GRAPHMILL_NUM_WORKERS": "5"})
        lines = [line.split("  ", 2)[-1].strip() for line in ended.out.splitlines()]
        assert lines[0] == "num_workers: how many worker processes"
        where = f"{tmp_path}/graphmill.toml, line"
        texts = "\n".join(lines)
        assert ended.out.splitlines()[2].startswith("  ->  5 ")
        assert texts.index("GRAPHMILL_NUM_WORKERS") < texts.index(f"{where} 3 (for other machines)")
        assert texts.index(f"{where} 3") < texts.index(f"{where} 1") < texts.index("default")

    def test_dask_says_something(self, command):
        told = json.loads(command("config", "--json", env={"DASK_GRAPHMILL__MEMORY_LIMIT": "1GB"}).out)
        assert told["memory_limit"]["value"] == "1GB"
        assert told["memory_limit"]["from"] == "dask.config 'graphmill.memory_limit'"

    def test_a_changed_file_stays_as_it_is_otherwise(self, command, tmp_path):
        path = tmp_path / "graphmill.toml"
        path.write_text("# mine\nworkers = 3 # three\n\n[machine.a]\nwarm_limit = 0\n")
        path.chmod(0o640)
        assert command("config", "set", "num_workers", "auto").code == 0
        assert path.read_text() == '# mine\nworkers = "auto"  # three\n\n[machine.a]\nwarm_limit = 0\n'
        assert path.stat().st_mode & 0o777 == 0o640
        assert command("config", "unset", "workers").code == 0
        assert path.read_text() == "# mine\n\n[machine.a]\nwarm_limit = 0\n"
        assert command("config", "unset", "workers").out.endswith("nothing to remove\n")
        assert list(tmp_path.iterdir()) == [path]

    def test_in_pyproject(self, command, tmp_path):
        path = tmp_path / "pyproject.toml"
        path.write_text('[project]\nname = "x"\n[tool.graphmill]\n[tool.other]\na = 1\n')
        assert command("config", "set", "spill_limit", "0").code == 0
        assert path.read_text() == (
            '[project]\nname = "x"\n[tool.graphmill]\nspill_limit = 0\n[tool.other]\na = 1\n'
        )

    def test_what_cannot_be_changed_is_left(self, command, tmp_path):
        path = tmp_path / "graphmill.toml"
        text = "machine = { a = { workers = 3 } }\n"
        path.write_text(text)
        ended = command("config", "set", "--machine", "a", "workers", "4")
        assert ended.code == 2
        assert "edit 'num_workers' in machine.a by hand" in ended.err
        assert path.read_text() == text

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (
                ["set", "memory_limt", "1GB"],
                "no setting 'memory_limt' (did you mean 'memory_limit'?)",
            ),
            (["set", "cache", "x"], "There is no setting 'cache'"),
            (["set", "workers", "0"], "'num_workers' must be a whole number of at least 1, or \"auto\""),
            (["set", "memory_limit", "none"], "`graphmill config unset` takes it out"),
            (["explain", "x"], "There is no setting 'x'"),
        ],
    )
    def test_mistakes(self, command, tmp_path, arguments, said):
        ended = command("config", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert list(tmp_path.iterdir()) == []

    def test_a_wrong_file(self, command, tmp_path):
        (tmp_path / "graphmill.toml").write_text("\nworker = 3")
        for arguments in ((), ("explain",), ("set", "workers", "3")):
            ended = command("config", *arguments)
            assert ended.code == 2
            assert ended.err.startswith(
                f"graphmill: {tmp_path}/graphmill.toml, line 2: 'worker' is no setting"
            )
            assert "(did you mean 'workers'?); there are workers, num_workers, memory_limit" in ended.err
            assert ended.err.count("\n") == 1


class TestClean:
    @pytest.fixture
    def leftover(self, tmp_path):
        """What an engine has left that was started long ago, by a process that is no more."""
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait(LIMIT)
        folder = tmp_path / "scratch" / f"graphmill-{process.pid}-7-0"
        folder.mkdir(parents=True)
        (folder / "arena").write_bytes(b"x" * 10_000)
        (tmp_path / "scratch" / "mine").mkdir()
        return folder

    def test_only_what_dead_engines_left(self, command, leftover):
        arguments = ["clean", "--folder", leftover.parent]
        ended = command(*arguments, "--dry-run")
        assert ended.code == 0
        assert str(leftover) in ended.out
        assert "nothing was removed" in ended.out
        assert leftover.exists()
        ended = command(*arguments)
        assert str(leftover) in ended.out
        assert not leftover.exists()
        assert [path.name for path in leftover.parent.iterdir()] == ["mine"]
        assert str(leftover) not in command(*arguments).out

    def test_no_folder(self, command):
        ended = command("clean", "--folder", "none")
        assert ended.code == 2
        assert "There is no folder 'none'" in ended.err


class TestBench:
    def test_compares(self, command):
        ended = command("bench", "--quick", "--only", "transpose", "--json")
        assert ended.code == 0, ended.err
        (told,) = json.loads(ended.out)
        assert told["agrees"]
        for scheduler in ("graphmill", "threads"):
            assert told[scheduler]["seconds"] > 0
            assert told[scheduler]["peak_bytes"] > 10_000_000

    def test_no_such_computation(self, command):
        ended = command("bench", "--only", "none")
        assert ended.code == 2
        assert "there are anomaly, transpose" in ended.err


class TestCompletion:
    @pytest.mark.parametrize(
        ("words", "some", "none"),
        [
            ("graphmill ", ["run", "config", "--version"], ["--workers"]),
            ("graphmill r", ["run"], ["config"]),
            ("graphmill run --w", ["--workers"], ["run"]),
            ("graphmill run s", ["script.py"], ["show"]),
            ("graphmill config ", ["show", "set"], ["run"]),
            ("graphmill config set ", ["workers", "memory_limit"], ["show"]),
            ("graphmill run --trace s", ["script.py"], []),
            ("graphmill run --workers ", [], ["script.py", "--trace"]),
        ],
    )
    @pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
    def test_bash(self, command, script, tmp_path, words, some, none):
        script("")
        completion = command("completion", "bash").out
        test = (
            f'{completion}\nread -ra COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=("")\n'
            "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _graphmill; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        ended = subprocess.run(
            ["bash", "--norc", "-c", test, "bash", words],
            capture_output=True, text=True, check=True, timeout=LIMIT, cwd=tmp_path,
        )  # fmt: skip
        found = ended.stdout.split()
        assert set(some) <= set(found)
        assert not set(none) & set(found)

    @pytest.mark.parametrize("shell", ["zsh", "fish"])
    def test_each_command_is_there(self, command, shell):
        text = command("completion", shell).out
        for word in ("run", "memory-limit", "dry-run", "completion", "explain"):
            assert word in text

    @pytest.mark.parametrize(("shell", "check"), [("zsh", ["-n"]), ("fish", ["--no-execute"])])
    def test_the_shell_can_read_it(self, command, tmp_path, shell, check):
        if shutil.which(shell) is None:
            pytest.skip(f"there is no {shell} here")
        (tmp_path / "completion").write_text(command("completion", shell).out)
        subprocess.run([shell, *check, tmp_path / "completion"], check=True, timeout=LIMIT)


def test_tables_fit_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    table([("a", "word " * 12), ("bb", "short")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("  a   word")
    assert lines[1].startswith("      word")
    table([("a name", "a value of some length", "/etc/x.toml, line 3"), ("other", "value", "here")])
    assert capsys.readouterr().out.splitlines() == [
        "  a name  a value of some length",
        "      /etc/x.toml, line 3",
        "  other   value                   here",
    ]


def test_tables_in_a_pipe_have_a_line_for_each_row(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table([("a", "word " * 12), ("bb", "short")])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_options_cannot_be_cut_short():
    with pytest.raises(SystemExit):
        parser.make_parser().parse_args(["info", "--js"])


def test_an_option_that_is_misspelt_is_told_with_the_one_that_was_meant(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--memory-limt", "600MB", "script.py"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "graphmill run [options]" in said
    assert "unrecognized arguments: --memory-limt (did you mean '--memory-limit'?)" in said
