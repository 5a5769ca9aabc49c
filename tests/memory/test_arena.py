"""Segments: who sees what, what they take, and what is left of them."""

import dataclasses
import errno
import json
import mmap
import os
import pickle
import re
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from graphmill.errors import ArenaFull
from graphmill.memory import arena as arena_module
from graphmill.memory.arena import PAGE, Arena, fitting_size, shared_memory_room
from graphmill.memory.leftovers import remove_leftovers, start_time
from graphmill.memory.mapping import CAN_REVERT, Window, revert
from graphmill.memory.segments import SHARED_MEMORY
from tests.memory.conftest import ENVIRONMENT, open_files, own_segments

SIZE = 64 * PAGE

linux = pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="segments are files on Linux only")
needs_revert = pytest.mark.skipif(not CAN_REVERT, reason="private mappings show no later writes here")


@pytest.fixture(params=["shared memory", "file"])
def folder(request, tmp_path):
    return None if request.param == "shared memory" else tmp_path


@pytest.fixture
def arena(folder):
    with Arena.create(3, SIZE, folder) as arena:
        yield arena


def path_of(arena):
    return Path(arena.handle.folder or SHARED_MEMORY, arena.handle.name)


CHILD = """
import json, sys
from graphmill.memory.arena import Arena, ArenaHandle

arena = Arena.attach(ArenaHandle(*json.loads(sys.argv[1])))
before = bytes(arena.private[:5])
arena.private[:5] = b"child"
print(before, bytes(arena.private[:5]), bytes(arena.shared[:5]))
"""


@needs_revert
def test_another_process_reads_it_and_keeps_its_changes_to_itself(arena, script):
    arena.shared[:6] = b"parent"
    assert script(CHILD, json.dumps(dataclasses.astuple(arena.handle))) == "b'paren' b'child' b'paren'\n"
    assert arena.shared[:6] == b"parent"
    assert arena.private[:6] == b"parent"
    assert path_of(arena).exists(), "a process that attached must not remove it"


@needs_revert
def test_a_forked_process_keeps_its_changes_to_itself(script):
    source = """
import os
from graphmill.memory.arena import Arena

with Arena.create(0, 4096) as arena:
    arena.shared[:6] = b"parent"
    child = os.fork()
    if not child:
        attached = Arena.attach(arena.handle)
        attached.private[:5] = b"child"
        os._exit(attached.private[:5] != b"child" or attached.shared[:6] != b"parent")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(bytes(arena.shared[:6]), bytes(arena.private[:6]))
"""
    assert script(source) == "b'parent' b'parent'\n"


@needs_revert
def test_a_private_mapping_shows_later_writes_and_can_be_set_back(arena):
    assert arena.private[0] == 0
    arena.shared[0] = 1
    assert arena.private[0] == 1
    arena.private[0] = 2
    arena.shared[0] = 3
    assert (arena.private[0], arena.shared[0]) == (2, 3)
    revert(arena.private, 0, PAGE)
    assert arena.private[0] == 3


@needs_revert
def test_a_window_has_changes_of_its_own_and_needs_no_descriptor(arena):
    arena.shared[PAGE] = 1
    files = open_files()
    one, other = (np.asarray(Window(arena.descriptor, PAGE, 2 * PAGE)) for _ in range(2))
    assert open_files() == files
    one[0] = 2
    assert (one[0], other[0], arena.shared[PAGE], one.size) == (2, 1, 1, 2 * PAGE)


def test_a_window_says_why_there_is_none():
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        Window(-1, 0, PAGE)


def test_its_size_is_whole_pages(folder):
    with Arena.create(0, PAGE + 1, folder) as arena:
        assert arena.size == len(arena.shared) == len(arena.private) == 2 * PAGE


def test_its_handle_travels(arena):
    handle = pickle.loads(pickle.dumps(arena.handle))
    assert handle == arena.handle
    attached = Arena.attach(handle)
    assert (attached.number, attached.size) == (3, SIZE)
    arena.shared[7] = 7
    assert attached.shared[7] == 7
    attached.close()


@linux
def test_only_its_user_can_open_it_and_its_name_tells_the_owner(arena):
    pid = os.getpid()
    assert re.fullmatch(rf"graphmill-{pid}-{start_time(pid)}-\d+", arena.handle.name)
    assert stat.S_IMODE(path_of(arena).stat().st_mode) == 0o600


@linux
def test_pages_come_when_reserved_and_go_when_punched(arena):
    assert arena.occupied() == 0
    arena.reserve(2 * PAGE, 10 * PAGE)
    assert arena.occupied() == 10 * PAGE
    assert set(arena.shared[2 * PAGE : 12 * PAGE]) == {0}
    arena.shared[2 * PAGE : 12 * PAGE] = bytes([1]) * 10 * PAGE
    assert arena.punch(2 * PAGE, 4 * PAGE)
    assert arena.occupied() == 6 * PAGE
    assert set(arena.shared[6 * PAGE : 12 * PAGE]) == {1}
    assert set(arena.shared[2 * PAGE : 6 * PAGE]) == {0}


@linux
def test_what_is_mapped_elsewhere_goes_at_once_too(arena):
    arena.reserve(0, SIZE)
    attached = Arena.attach(arena.handle)
    seen = np.frombuffer(attached.private, np.uint8)
    assert seen.sum() == 0
    before = arena.occupied()
    assert arena.punch(0, SIZE)
    assert arena.occupied() < before // 4
    attached.close()


@linux
def test_after_a_death_only_published_blocks_stay(arena):
    arena.reserve(0, SIZE)
    arena.shared[:SIZE] = bytes([1]) * SIZE
    arena.keep_only([(8 * PAGE, 2 * PAGE), (PAGE, PAGE), (2 * PAGE, PAGE)])
    kept = {at for at in range(SIZE // PAGE) if arena.shared[at * PAGE]}
    assert kept == {1, 2, 8, 9}


def test_where_pages_cannot_be_given_back_they_keep_their_content(arena, monkeypatch):
    monkeypatch.delattr(mmap, "MADV_REMOVE", raising=False)
    arena.shared[0] = 1
    assert not arena.punch(0, PAGE)
    assert arena.shared[0] == 1


@linux
def test_a_file_system_without_holes_says_so(arena, monkeypatch):
    def refuse(*arguments):
        raise OSError(code, "no")

    monkeypatch.setattr(arena_module, "advise", refuse)
    code = errno.EOPNOTSUPP
    assert not arena.punch(0, PAGE)
    code = errno.EIO
    with pytest.raises(OSError, match="no"):
        arena.punch(0, PAGE)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM])
def test_no_room_is_an_error_that_can_be_handled(arena, monkeypatch, code):
    def fail(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    with pytest.raises(ArenaFull, match=os.strerror(code)):
        arena.reserve(0, PAGE)


def test_other_errors_are_not_taken_for_a_lack_of_room(arena, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    with pytest.raises(OSError, match="broken"):
        arena.reserve(0, PAGE)


@pytest.mark.parametrize("has_it", [True, False])
def test_where_nothing_can_be_reserved_files_are_filled(arena, monkeypatch, has_it):
    def fail(*arguments):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if has_it:
        monkeypatch.setattr(os, "posix_fallocate", fail, raising=False)
    else:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(arena_module, "ZEROS", bytes(PAGE + 1))
    arena.reserve(PAGE, 3 * PAGE)
    assert arena.occupied() >= (3 * PAGE if arena.handle.folder else 0)


@pytest.mark.parametrize(("offset", "nbytes"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (0, -1)])
def test_nothing_is_reserved_outside(arena, offset, nbytes):
    with pytest.raises(ValueError, match="no part of arena 3"):
        arena.reserve(offset, nbytes)


def test_views_outlive_it(folder):
    with Arena.create(0, PAGE, folder) as arena:
        arena.shared[0] = 1
        view = np.frombuffer(arena.shared, np.uint8)
    assert view[0] == 1
    view[1] = 2
    assert view[1] == 2


def test_ending_it_twice_is_fine(folder):
    arena = Arena.create(0, PAGE, folder)
    attached = Arena.attach(arena.handle)
    attached.unlink()  # nothing: it is not the owner
    for each in (arena, attached):
        each.close()
        each.close()
        with pytest.raises(ValueError, match="closed"):
            _ = each.descriptor
    Arena.attach(arena.handle).close()
    arena.unlink()
    arena.unlink()
    with pytest.raises(FileNotFoundError):
        Arena.attach(arena.handle)


def test_somebody_else_may_have_removed_it(folder):
    with Arena.create(0, PAGE, folder) as arena:
        arena.handle.unlink()
        arena.handle.unlink()


def test_nothing_stays_of_one_that_could_not_be_made(folder, monkeypatch):
    def fail(descriptor, size):
        raise OSError(errno.EFBIG, "too large")

    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="too large"):
        Arena.create(0, PAGE, folder)
    assert folder is None or list(folder.iterdir()) == []


def test_a_segment_may_be_far_larger_than_memory(folder):
    with Arena.create(0, 1 << 40, folder) as arena:
        arena.reserve((1 << 40) - PAGE, PAGE)
        arena.shared[-1] = 1
        assert arena.private[-1] == 1


# ---- the end of a process


@pytest.mark.parametrize("end", ["with", "collected", "exit", "removed by another", "only attached"])
def test_an_exit_leaves_nothing_and_says_nothing(script, end):
    source = """
import sys
from graphmill.memory.arena import Arena

arena = Arena.create(0, 1 << 20)
arena.shared[0] = 1
view = memoryview(arena.private)
if sys.argv[1] == "with":
    with arena:
        pass
elif sys.argv[1] == "collected":
    del arena
elif sys.argv[1] == "removed by another":
    arena.handle.unlink()
elif sys.argv[1] == "only attached":
    import subprocess
    subprocess.run([sys.executable, "-W", "error", "-c", '''
import sys
from graphmill.memory.arena import Arena, ArenaHandle
arena = Arena.attach(ArenaHandle(0, 1 << 20, sys.argv[1], None))
assert arena.private[0] == 1
''', arena.handle.name], check=True)
    Arena.attach(arena.handle).close()
import os
print(os.getpid())
"""
    assert own_segments(int(script(source, end))) == []


@linux
def test_what_a_killed_process_leaves_is_removed_by_the_next_one():
    source = """
import os, signal
from graphmill.memory.arena import Arena

arenas = [Arena.create(number, 1 << 20) for number in range(3)]
print(len(arenas), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    ) as process:
        assert process.communicate(timeout=60) == (b"3\n", b"")
    assert process.returncode == -signal.SIGKILL
    assert len(own_segments(process.pid)) == 3
    remove_leftovers()
    assert own_segments(process.pid) == []


# ---- limits

LIMITED = """
import resource, sys
from graphmill.memory.arena import Arena, fitting_size

kind, limit = getattr(resource, sys.argv[1]), int(sys.argv[2])
resource.setrlimit(kind, (limit, limit))
"""


def test_without_limits_the_size_is_as_wanted():
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("this process is limited itself")
    assert fitting_size(1 << 40, 8) == 1 << 40
    assert fitting_size(PAGE + 1, 8) == PAGE


@linux
def test_the_address_space_that_is_left_is_shared_out(script):
    source = LIMITED + "print(fitting_size(1 << 40, 4)); Arena.create(0, fitting_size(1 << 40, 4)).private"
    size = int(script(source, "RLIMIT_AS", 4 << 30))
    assert 0 < size <= (4 << 30) // 8
    assert size % PAGE == 0


@linux
def test_too_large_a_mapping_says_what_limits_it(script):
    source = """
with Arena.create(0, 1 << 30) as arena:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
    try:
        arena.private
    except OSError as error:
        print(error.__notes__)
"""
    assert "ulimit -v" in script(LIMITED + source, "RLIMIT_AS", 8 << 30)


def test_files_are_no_longer_than_allowed(script, tmp_path):
    source = """
from pathlib import Path
size = fitting_size(1 << 40, 1)
with Arena.create(0, size, Path(sys.argv[3])) as arena:
    arena.reserve(0, size)
    print(size)
"""
    assert script(LIMITED + source, "RLIMIT_FSIZE", 1 << 20, tmp_path) == f"{1 << 20}\n"


def test_strict_accounting_of_memory_is_respected(monkeypatch):
    texts = {
        "/proc/sys/vm/overcommit_memory": "2\n",
        "/proc/meminfo": "MemTotal: 9 kB\nCommitLimit:  4096 kB\nCommitted_AS: 2048 kB\nHugePages: 0\n",
    }
    monkeypatch.setattr(Path, "read_text", lambda path: texts[str(path)])
    assert fitting_size(1 << 40, 4) == (1 << 20) // 4
    texts["/proc/sys/vm/overcommit_memory"] = "0\n"
    assert fitting_size(1 << 40, 4) == 1 << 40


def test_where_nothing_is_told_nothing_is_limited(monkeypatch):
    def fail(path):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert fitting_size(1 << 40, 4) == 1 << 40


def test_the_room_for_shared_memory_is_known(monkeypatch, tmp_path):
    if SHARED_MEMORY.is_dir():
        assert 0 <= shared_memory_room() <= psutil.disk_usage(str(SHARED_MEMORY)).total
    monkeypatch.setattr(arena_module, "SHARED_MEMORY", tmp_path / "none")
    assert shared_memory_room() is None


@linux
def test_full_shared_memory_is_an_error_and_not_a_signal(script, small_shared_memory):
    source = """
from graphmill.errors import ArenaFull
from graphmill.memory.arena import Arena, shared_memory_room

with Arena.create(0, 1 << 30) as arena:
    room = shared_memory_room()
    arena.reserve(0, room // 2)
    try:
        arena.reserve(1 << 20, room)
    except ArenaFull as error:
        print(error)
    assert arena.occupied() == room // 2
    arena.shared[: room // 2] = bytes([1]) * (room // 2)
    arena.punch(0, room // 2)
    arena.reserve(1 << 20, room)
    arena.shared[1 << 20 : (1 << 20) + room] = bytes([1]) * room
"""
    assert "no room for 1048576 bytes" in script(source, before=small_shared_memory)
