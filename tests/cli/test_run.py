"""`graphmill run`: scripts run as Python runs them, with graphmill below Dask."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading

import pytest

from tests.cli.conftest import LIMIT, environment
from tests.engine.conftest import left_of

#: A user's script: no guard, functions of its own, and no word of graphmill.
USERS = """
import os, sys
import dask
import dask.array as da

OFFSET = 1

def add(block):
    return helper(block)

def helper(block):
    return block + OFFSET

class Point:
    def __init__(self, x):
        self.x = x

@dask.delayed
def point(x):
    return Point(x)

x = da.ones((200, 200), chunks=100).map_blocks(add)
print(float(x.sum().compute()))
pids = set(da.zeros(4, chunks=1, dtype=int).map_blocks(lambda b: b + os.getpid()).compute().tolist())
print(os.getpid() in pids)
print(type(point(3).compute()) is Point)

if __name__ == "__main__":
    print("main", sys.argv[1:])
"""
WHAT_IT_SAYS = "80000.0\nFalse\nTrue\nmain ['--year', '2024', '--workers', '9']\n"
SUMMARY = re.compile(
    r"graphmill: \d.* m?s, (\d+) tasks?, peak memory \d.* of \d.*B, \d.* spilled\n", re.MULTILINE
)

#: Tells what a program sees of how it was started.
MIRROR = """
import sys
main = sys.modules["__main__"]
print(sys.argv)
print(__name__, main.__dict__ is globals(), repr(sys.path[0]), __file__ if "__file__" in globals() else None)
print(__spec__ and __spec__.name, __package__ or None)
"""


class TestPrograms:
    def test_a_users_script_runs_unchanged_on_workers(self, command, script):
        ended = command("run", script(USERS), "--year", "2024", "--workers", "9")
        assert (ended.code, ended.out) == (0, WHAT_IT_SAYS)
        assert SUMMARY.fullmatch(ended.err)
        assert int(SUMMARY.fullmatch(ended.err)[1]) >= 9

    def test_from_stdin(self, command):
        ended = command("run", "-", "--year", "2024", "--workers", "9", stdin=USERS)
        assert (ended.code, ended.out) == (0, WHAT_IT_SAYS)

    def test_a_module(self, command, script):
        script("", "package/__init__.py")
        script(USERS, "package/part.py")
        ended = command("run", "-m", "package.part", "--year", "2024", "--workers", "9")
        assert (ended.code, ended.out) == (0, WHAT_IT_SAYS)

    @pytest.mark.parametrize("kind", ["script", "link", "module", "package", "folder"])
    def test_sees_what_it_sees_under_python(self, command, script, tmp_path, kind):
        script(MIRROR, "inner/script.py")
        script("", "inner/package/__init__.py")
        script(MIRROR, "inner/package/__main__.py")
        (tmp_path / "link.py").symlink_to("inner/script.py")
        cwd = tmp_path
        if kind in ("module", "package"):
            cwd = tmp_path / "inner"
        arguments = {
            "script": ["inner/script.py"],
            "link": ["link.py"],
            "module": ["-m", "script"],
            "package": ["-m", "package"],
            "folder": ["inner/package"],
        }[kind]
        expected = command(*arguments, "a", "-b", "--quiet", program=(), cwd=cwd)
        assert expected.code == 0, expected.err
        assert command("run", "--quiet", *arguments, "a", "-b", "--quiet", cwd=cwd) == expected

    def test_modules_beside_the_script_are_found(self, command, script):
        script("def double(x):\n    return 2 * x\n", "inner/beside.py")
        name = script(
            "import beside, dask\nprint(dask.delayed(beside.double)(4).compute())", "inner/script.py"
        )
        assert command("run", name).out == "8\n"

    def test_numpy_is_not_loaded_before_the_script(self, command, script):
        name = script("import sys\nprint('numpy' in sys.modules)")
        ended = command("run", name)
        assert (ended.out, ended.code) == ("False\n", 0)
        assert ended.err.endswith("; the program ran no graph on graphmill\n")

    def test_its_own_scheduler_goes_first(self, command, script):
        source = """
import dask, os
own = os.getpid()
pid = dask.delayed(os.getpid)
print(pid().compute(scheduler="threads") == own, pid().compute() == own)
with dask.config.set(scheduler="sync"):
    print(pid().compute() == own)
"""
        assert command("run", script(source)).out == "True False\nTrue\n"

    def test_persist_keeps_chunks_in_shared_memory(self, command, script):
        source = """
import os, dask.array as da
from graphmill import engine
x = da.arange(1_000_000, chunks=250_000).persist()
print(engine._defaults[os.getpid()].engine.memory().live >= 8_000_000, int(x.sum().compute()))
"""
        assert command("run", script(source)).out == "True 499999500000\n"

    def test_processes_of_its_own(self, command, script):
        source = """
import multiprocessing

def double(x):
    return 2 * x

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
        assert command("run", script(source)).out == "[2, 4]\n"


class TestEnds:
    @pytest.mark.parametrize(
        ("end", "code"),
        [("sys.exit(3)", 3), ("sys.exit()", 0), ("sys.exit('bad day')", 1), ("raise SystemExit(True)", 1)],
    )
    def test_the_scripts_exit_code(self, command, script, end, code):
        name = script(f"import sys\n{end}\n")
        plain = command(name, program=())
        ended = command("run", "--quiet", name)
        assert ended == plain
        assert ended.code == code

    @pytest.mark.parametrize(
        "source",
        [
            "def f():\n    raise ValueError('mine')\nf()\n",
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e\n",
            "print('a'\nprint('b')\n",
            "import sys\nsys.excepthook = lambda *args: print('hook', args[0].__name__)\n1 / 0\n",
            "import none_such\n",
        ],
    )
    def test_its_exception_looks_as_python_shows_it(self, command, script, source):
        name = script(source)
        plain = command(name, program=())
        assert plain.code == 1
        assert command("run", "--quiet", name) == plain

    def test_an_exception_in_a_task(self, command, script):
        ended = command(
            "run",
            script("import dask\ndef bad():\n    raise ValueError('mine')\ndask.delayed(bad)().compute()"),
        )
        assert ended.code == 1
        assert "ValueError: mine" in ended.err
        assert "runpy" not in ended.err
        assert "graphmill/cli" not in ended.err.replace("graphmill/cli/run.py", "", 1)
        assert ended.err.count("in bad") == 1

    def test_ctrl_c(self, tmp_path, script):
        name = script(
            "import dask, time\ndef sleep():\n    print('going', flush=True)\n    time.sleep(100)\n"
            "dask.delayed(sleep)().compute()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-m", "graphmill", "run", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        try:
            assert process.stdout.readline() == "going\n"
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert process.returncode == 130
        assert "Traceback" not in out + err
        assert err.endswith("graphmill: interrupted\n")
        assert left_of(process.pid) == []


class TestOptions:
    def test_settings(self, command, script):
        source = """
import dask, graphmill
dask.delayed(abs)(-1).compute()
print(*[graphmill.config.get(name) for name in ("num_workers", "memory_limit", "spill_folder")])
"""
        ended = command(
            "run", "--workers", "1", "--memory-limit", "300MB", "--spill-dir", ".", script(source),
            env={"GRAPHMILL_NUM_WORKERS": "2", "GRAPHMILL_MEMORY_LIMIT": "1GB"},
        )  # fmt: skip
        assert ended.out == "1 300MB .\n"
        assert " of 300 MB, " in ended.err

    def test_spilled_bytes_are_told(self, command, script):
        source = """
import dask.array as da
x = da.random.default_rng(0).random((40, 1_000_000), chunks=(1, 1_000_000))
print(float(((x - x.mean(axis=0)) ** 2).sum().compute()) > 0)
"""
        ended = command("run", "--workers", "1", "--memory-limit", "400MB", script(source))
        assert ended.out == "True\n", ended.err
        assert " 0 B spilled" not in ended.err

    def test_report_and_trace(self, command, script, tmp_path):
        name = script("import dask\ndask.delayed(abs)(-1).compute()\nraise SystemExit(4)")
        ended = command("run", "--report", "r.html", "--trace", "t.json", name)
        assert ended.code == 4
        assert SUMMARY.fullmatch(ended.err)[1] == "1"
        assert "<html" in (tmp_path / "r.html").read_text()[:2000].lower()
        assert json.loads((tmp_path / "t.json").read_text())

    def test_no_report_without_a_graph(self, command, script, tmp_path):
        ended = command("run", "--report", "r.html", script("print(1)"))
        assert (ended.code, ended.out) == (0, "1\n")
        assert "no report was written" in ended.err
        assert not (tmp_path / "r.html").exists()

    def test_dashboard(self, command, script):
        source = """
import re, sys, urllib.request
import dask
dask.delayed(abs)(-1).compute()
url = sys.stdin.read()
"""
        ended = command("run", "--dashboard", script(source))
        assert ended.code == 0
        assert re.match(r"graphmill: live at http://127\.0\.0\.1:\d+/\S+/\n", ended.err)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--workers", "0", "s.py"], "'num_workers' must be a whole number of at least 1"),
            (["--workers", "many", "s.py"], "--workers gives 'many'"),
            (["--memory-limit", "8 gigs", "s.py"], "--memory-limit gives '8 gigs'"),
            (["--memory", "8GB", "s.py"], "--memory"),
            (["none.py"], "'none.py' cannot be read: No such file or directory"),
            (["-m", "none_such"], "There is no module 'none_such'"),
            (["-m", "json.none"], "There is no module 'json.none'"),
            (["-m", "xml"], "'xml' is a package without a __main__"),
            (["empty"], "'empty' has no __main__.py"),
            (["--report", "no/r.html", "s.py"], "'no/r.html' cannot be written: there is no folder"),
            (["--trace", "empty", "s.py"], "'empty' cannot be written"),
            ([], "the following arguments are required"),
        ],
    )
    def test_mistakes_are_told_before_anything_runs(self, command, script, tmp_path, arguments, said):
        script("print('ran')", "s.py")
        (tmp_path / "empty").mkdir()
        ended = command("run", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert said in ended.err
        assert "Traceback" not in ended.err

    def test_a_wrong_file_of_settings_is_told_before_anything_runs(self, command, script, tmp_path):
        (tmp_path / "graphmill.toml").write_text("workers = 0")
        ended = command("run", script("print('ran')"))
        assert (ended.code, ended.out) == (2, "")
        assert ended.err.startswith(f"graphmill: {tmp_path}/graphmill.toml, line 1: 'workers' must be")
        ended = command("run", "--traceback", script("print('ran')"))
        assert ended.code == 2
        assert "Traceback" in ended.err


class TestTerminal:
    def test_what_is_printed_goes_where_it_went_without(self, script, tmp_path):
        source = """
import dask, time
print("before")
dask.delayed(time.sleep)(0.5).compute()
print("at once after")
"""
        ours, theirs = pty.openpty()
        seen = []
        reader = threading.Thread(target=lambda: read_all(ours, seen), daemon=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "graphmill", "run", script(source)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            text=True,
            cwd=tmp_path,
            env=environment(tmp_path, {"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}),
        )
        os.close(theirs)
        reader.start()
        out, _ = process.communicate(timeout=LIMIT)
        reader.join(LIMIT)
        os.close(ours)
        assert out == "before\nat once after\n"
        shown = b"".join(seen).decode()
        assert "1 task" in shown
        assert "memory" in shown
        assert shown.rstrip().split("\n")[-1].count("graphmill: ") == 1


def read_all(terminal, seen):
    """Read what is written to a terminal until nobody has it open any more."""
    try:
        while piece := os.read(terminal, 4096):
            seen.append(piece)
    except OSError:  # that is how it ends
        pass
