"""Who owns what, and what is removed after its owner is gone."""

import fcntl
import os
import re
import stat
import subprocess
import sys

import psutil
import pytest

from graphmill.memory import leftovers
from graphmill.memory.leftovers import OwnedFolder, find_leftovers, own_name, remove_leftovers, start_time


@pytest.fixture(autouse=True)
def no_shared_memory(monkeypatch, tmp_path):
    """Look for leftovers in the test's own folder only."""
    monkeypatch.setattr(leftovers, "SHARED_MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()


@pytest.fixture
def dead():
    """Number and start time of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        return process.pid, start_time(process.pid)


def put(folder, pid, started, number=0):
    path = folder / f"graphmill-{pid}-{started}-{number}"
    path.write_bytes(b"x")
    return path


def test_names_carry_process_and_start_time():
    pid = os.getpid()
    names = [own_name(), own_name()]
    assert names[0] != names[1]
    assert all(re.fullmatch(rf"graphmill-{pid}-{start_time(pid)}-\d+", name) for name in names)


def test_names_fit_where_names_are_short():
    # macOS allows 31 characters with the slash; its start times have ten digits, its numbers five.
    assert len("/graphmill-99999-1999999999-99") <= 31


def test_what_a_dead_process_left_is_removed(tmp_path, dead):
    segment = put(tmp_path / "shm", *dead)
    file = put(tmp_path, *dead)
    folder = tmp_path / f"graphmill-{dead[0]}-{dead[1]}-7"
    folder.mkdir()
    put(folder, *dead)
    assert remove_leftovers(tmp_path) == [segment, file, folder]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shm"]
    assert remove_leftovers(tmp_path) == []


def test_what_a_living_process_has_stays(tmp_path):
    mine = put(tmp_path, os.getpid(), start_time(os.getpid()))
    assert remove_leftovers(tmp_path) == []
    assert mine.exists()


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path):
    other = put(tmp_path, os.getpid(), start_time(os.getpid()) + 1)
    assert remove_leftovers(tmp_path) == [other]


def test_what_is_locked_stays_though_its_owner_cannot_be_seen(tmp_path, dead):
    path = put(tmp_path, *dead)
    with path.open("rb") as file:
        leftovers.lock(file.fileno())
        assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path) == [path]


def test_other_names_stay(tmp_path, dead):
    names = ["graphmill", "graphmill-1", f"graphmill-{dead[0]}-{dead[1]}", f"x-{dead[0]}-{dead[1]}-0"]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert remove_leftovers(tmp_path) == []


def test_links_are_not_followed(tmp_path, dead, caplog):
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    link = tmp_path / f"graphmill-{dead[0]}-{dead[1]}-0"
    link.symlink_to(precious)
    assert remove_leftovers(tmp_path) == []
    assert precious.exists()
    assert "cannot be opened" in caplog.text


def test_what_another_user_owns_stays(tmp_path, dead, monkeypatch):
    path = put(tmp_path, *dead)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert remove_leftovers(tmp_path) == []


def test_where_nothing_can_be_locked_everything_stays(tmp_path, dead, monkeypatch, caplog):
    path = put(tmp_path, *dead)

    def fail(descriptor, how):
        raise OSError(95, "not supported")

    monkeypatch.setattr(fcntl, "flock", fail)
    assert remove_leftovers(tmp_path) == []
    assert path.exists()
    assert "cannot be removed" in caplog.text
    with OwnedFolder(tmp_path) as folder:  # nor is a lock needed to own something
        assert folder.path.is_dir()


def test_to_find_leftovers_removes_nothing(tmp_path, dead):
    path = put(tmp_path, *dead)
    put(tmp_path, os.getpid(), start_time(os.getpid()))
    assert find_leftovers(tmp_path, tmp_path) == [path]
    assert path.exists()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert find_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path) == [path]
    assert find_leftovers(tmp_path) == []


def test_folders_need_not_exist(tmp_path):
    assert remove_leftovers(tmp_path / "none", tmp_path / "none" / "either") == []


def test_a_dead_child_that_nobody_reaped_is_dead():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        assert start_time(process.pid) is not None
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None
        process.wait()
        assert start_time(process.pid) is None


def test_systems_without_proc_ask_elsewhere(monkeypatch, tmp_path, dead):
    monkeypatch.setattr(leftovers, "PROC", tmp_path)
    assert start_time(os.getpid()) == int(psutil.Process().create_time())
    assert start_time(dead[0]) is None


def test_a_program_may_have_any_name(monkeypatch, tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "stat").write_bytes(b"")
    (tmp_path / "7").mkdir()
    fields = " ".join(["S", *map(str, range(1, 40))])
    (tmp_path / "7" / "stat").write_bytes(f"7 (a) Z 1 (b) {fields}".encode())
    monkeypatch.setattr(leftovers, "PROC", tmp_path)
    assert start_time(7) == 19


def test_a_folder_is_private_and_goes_with_all_in_it(tmp_path):
    with OwnedFolder(tmp_path) as folder:
        assert folder.path.parent == tmp_path
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        (folder.path / "file").write_bytes(b"x")
        assert remove_leftovers(tmp_path) == []
    assert not folder.path.exists()
    folder.close()


def test_a_folder_may_be_gone_already(tmp_path):
    folder = OwnedFolder(tmp_path)
    folder.path.rmdir()
    folder.close()


def test_a_forked_copy_of_the_owner_removes_nothing(tmp_path, script):
    source = """
import os, sys
from pathlib import Path
from graphmill.memory.arena import Arena
from graphmill.memory.leftovers import OwnedFolder

folder, arena = OwnedFolder(Path(sys.argv[1])), Arena.create(0, 4096)
if not os.fork():
    folder.close()
    arena.unlink()
    os._exit(0)
os.wait()
assert folder.path.is_dir()
Arena.attach(arena.handle).close()
print("still there")
"""
    assert script(source, tmp_path) == "still there\n"
    assert list(tmp_path.glob("graphmill*")) == []
