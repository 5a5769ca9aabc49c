"""Pools in programs of all kinds, however they are started, and however they end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import zipapp
from pathlib import Path

import psutil
import pytest

LIMIT = 60
HERE = Path(__file__).parent
SOURCE = Path(__file__).parents[2] / "src"

#: No guard against being run again: a child that imported this would start pools without end. One
#: statement to a line, for it is also typed in at the prompt.
PROGRAM = """
import json, sys
from graphmill.workers.pool import Pool
main = "what the template must not take for __main__.main"
pool = Pool(2, serve="serving:echo", preload=["json"])
pool.send(0, ("describe",))
pool.send(1, ("describe",))
found = pool.poll(60)
found += pool.poll(60) if len(found) < 2 else []
print(json.dumps([message for _, message in found]))
sys.stdout.flush()
"""


def environment(*path, **more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **more}


@pytest.fixture
def run(tmp_path):
    """Run a program in an empty folder, and give what it found in its workers."""

    def once(*args, text=None, path=(SOURCE, HERE), silent=True, **more):
        done = subprocess.run(
            [sys.executable, *map(str, args)],
            input=text,
            check=False,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=tmp_path,
            env=environment(*path, **more),
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "" or not silent, done.stderr
        return check(done.stdout)

    return once


def check(output):
    found = json.loads(output.splitlines()[-1])
    assert {each["number"] for each in found} == {0, 1}
    assert all(each["main"] == [] for each in found)
    assert len({each["hash"] for each in found}) == 1
    return found


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(PROGRAM)
    return path


def test_script_without_guard(run, script):
    run(script)


def test_command(run):
    run("-c", PROGRAM)


def test_standard_input(run):
    run("-", text=PROGRAM)


def test_module(run, script):
    run("-m", "script")


def test_prompt(run):
    run("-q", "-i", text=PROGRAM, silent=False)  # the prompt is an error to the shell


def test_notebook(run):
    """A cell runs in a namespace that has no file."""
    run("-c", f"exec(compile({PROGRAM!r}, '<cell 1>', 'exec'), {{'__name__': '__main__'}})")


def test_other_thread(run, script):
    run(
        "-c",
        "import threading\nt = threading.Thread(target=__import__, args=('script',))\nt.start()\nt.join()",
    )


def test_zip_archive(run, tmp_path):
    """Nothing but the archive has graphmill in it."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text(PROGRAM)
    (folder / "serving.py").write_text((HERE / "serving.py").read_text())
    for path in (SOURCE / "graphmill").rglob("*.py"):
        target = folder / path.relative_to(SOURCE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    zipapp.create_archive(folder, tmp_path / "app.pyz")
    run(tmp_path / "app.pyz", path=())


CHANGE_PATH = f"import sys\nsys.path[:0] = [{str(SOURCE)!r}, {str(HERE)!r}]\n"


def test_path_changed_by_the_program(run):
    run("-c", CHANGE_PATH + PROGRAM, path=())


def test_path_that_is_the_working_directory(run, tmp_path):
    (tmp_path / "serving.py").write_text((HERE / "serving.py").read_text())
    found = run("-c", PROGRAM, path=(SOURCE,))
    assert "" in found[0]["path"]


def test_graphmill_that_is_not_on_the_path_any_more(run):
    run("-c", PROGRAM.replace("main =", f"sys.path.remove({str(SOURCE)!r})\nmain ="))


@pytest.mark.parametrize(
    "options", [["-I"], ["-E", "-s"], ["-B", "-OO", "-b"], ["-X", "dev"], ["-X", "utf8=0"]]
)
def test_options(run, options):
    found = run(*options, "-W", "error", "-c", CHANGE_PATH + PROGRAM + "\npool.close()")
    assert found[0]["optimize"] == (2 if "-OO" in options else 0)


def test_hash_seed_of_the_parent_is_kept(run):
    run("-c", PROGRAM + "\nassert found[0][1]['hash'] == hash('graphmill')\n", PYTHONHASHSEED="123")


@pytest.mark.parametrize("ending", ["", "\npool.close()", "\nsys.exit(0)", "\npool = None"])
def test_end_of_the_program(run, ending):
    found = run("-W", "ignore::ResourceWarning", "-c", PROGRAM + ending)
    assert not any(psutil.pid_exists(each["pid"]) for each in found)


#: Has its workers print, and writes what it found into a file.
SILENT = """
import contextlib
import json
from graphmill.workers.pool import Pool
with Pool(2, serve="serving:echo", preload=()) as pool, open("found", "w") as output:
    for worker in range(2):
        pool.send(worker, ("say", "a word"), ("describe",))
    events = []
    while len(events) < 4:
        events += pool.poll(60)
    json.dump([message for _, message in events if message != "said"], output)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(tmp_path, closed):
    """What is opened first takes their numbers; then a word printed would go into a channel."""
    subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, SILENT],
        check=False,
        timeout=LIMIT,
        cwd=tmp_path,
        env=environment(SOURCE, HERE),
    )
    check((tmp_path / "found").read_text())


# ---- a parent that dies

#: Has one idle and one busy worker, guards files in the folder that it runs in, and waits to be killed.
VICTIM = """
import json, os, sys
from pathlib import Path
from graphmill.workers.pool import Pool

def own(name):
    return str(Path.cwd() / f"graphmill-{os.getpid()}-{name}")

Path("precious").mkdir()
Path("precious/file").touch()
Path(own("folder")).mkdir()
for name in ("folder/file", "early", "late", "spared"):
    Path(own(name)).touch()
os.symlink(Path.cwd() / "precious", own("link"))
os.symlink(Path.cwd() / "precious", own("folder/link"))

pool = Pool(2, serve="serving:echo", preload=())
pool.guard(own("early"), own("folder"), own("link"), own("never"))
pids = {}
for worker in range(2):
    pool.send(worker, ("describe",))
while len(pids) < 2:
    pids.update({number: message["pid"] for number, message in pool.poll(60)})
pool.guard(own("late"), own("spared"))
pool.unguard(own("spared"))
pool.send(0, ("start_program",))
[(_, pids["program"])] = pool.poll(60)
pool.send(1, ("run_task", 1, "spin"))
assert pool.poll(60) == [(1, ("began", 1))]
if "fork" in sys.argv and os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
print(json.dumps([*pids.values(), pool.template_pid]), flush=True)
pool.poll(60)
"""


def start_victim(folder, *args):
    return subprocess.Popen(
        [sys.executable, "-c", VICTIM, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment(SOURCE, HERE),
        start_new_session=True,
    )


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("args", [[], ["fork"]])
def test_parent_that_is_killed(tmp_path, death, args):
    with start_victim(tmp_path, *args) as parent:
        processes = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
        parent.send_signal(death)
        # With "fork", a process that it forked lives on here, with all that it had open.
        _, alive = psutil.wait_procs(processes, timeout=LIMIT)
        parent.communicate(timeout=LIMIT)
    assert alive == []
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == [f"graphmill-{parent.pid}-spared", "precious", "precious/file"]


def test_ctrl_c_at_the_terminal(tmp_path):
    """All of the foreground gets it: the parent alone is in it, and ends its workers in peace."""
    with start_victim(tmp_path) as parent:
        processes = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
        os.killpg(parent.pid, signal.SIGINT)
        _, errors = parent.communicate(timeout=LIMIT)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert psutil.wait_procs(processes, timeout=LIMIT)[1] == []  # of some, the system takes note later
    assert (tmp_path / f"graphmill-{parent.pid}-early").exists()


def run_killed(source, folder):
    """Run a program in a folder that names its template and kills itself; wait until that has ended, too."""
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=folder,
        env=environment(SOURCE, HERE, folder, PYTHONDONTWRITEBYTECODE="1"),
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(LIMIT)


WHILE_IT_IMPORTS = """
import os, signal
from graphmill.workers.pool import Pool

path = os.path.join(os.getcwd(), f"graphmill-{os.getpid()}-guarded")
pool = Pool(1, serve="serving:echo", preload=["slow_library"])
pool.start()
pool.guard(path)
open(path, "w").close()
pool.send(0, ("describe",))
while not os.path.exists("begun"):
    pool.poll(0.01)
print(pool.template_pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_parent_that_is_killed_while_the_template_imports(tmp_path):
    """What it imports may take long, and the parent's files must not stay as long."""
    library = tmp_path / "slow_library.py"
    begun = tmp_path / "begun"
    library.write_text(f"import time\nopen({str(begun)!r}, 'w').close()\ntime.sleep(1000)\n")
    run_killed(WHILE_IT_IMPORTS, tmp_path)
    assert sorted(tmp_path.iterdir()) == [begun, library]


BETWEEN_TWO = """
import os, signal, sys
from graphmill.workers.pool import Pool
from graphmill.workers.template_handle import TemplateHandle

def start(self, *args, real=TemplateHandle.start):
    if self.preloads.left_out:  # the first template is not of use, and this would be the second
        print(self._predecessor[1].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, *args)

TemplateHandle.start = start
path = os.path.join(os.getcwd(), f"graphmill-{os.getpid()}-guarded")
pool = Pool(1, serve="serving:echo", preload=["threaded_library"])
pool.start()
pool.guard(path)
open(path, "w").close()
pool.send(0, ("describe",))
pool.poll(60)
"""


def test_a_parent_that_is_killed_between_two_templates(tmp_path):
    """The first has imported what starts a thread: it forks nobody, but cleans up until the second can."""
    library = tmp_path / "threaded_library.py"
    library.write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    run_killed("import threaded_library\n" + BETWEEN_TWO, tmp_path)
    assert list(tmp_path.iterdir()) == [library]
