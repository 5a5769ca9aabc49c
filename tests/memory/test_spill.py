"""The spill file: bytes move to disk, space comes back, and whatever fails changes nothing."""

import os
import stat
import types
from pathlib import Path

import numpy as np
import pytest

from graphmill.errors import ConfigError, SpillError, SpillFull
from graphmill.memory import spill
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import Extent
from graphmill.memory.lease import Reader
from graphmill.memory.spill import SpillFile, best_folder, checked_folder, default_folder, file_system

LENGTH = 64 * PAGE
NUMBER = 7


@pytest.fixture
def source():
    """A segment with numbers in it."""
    with Arena.create(0, 4 * LENGTH) as arena:
        arena.reserve(0, arena.size)
        np.frombuffer(arena.shared, np.uint32)[:] = np.arange(arena.size // 4)
        yield arena


@pytest.fixture
def file(tmp_path):
    with SpillFile(tmp_path, NUMBER) as made:
        yield made


def content(arena, offset, length):
    return np.frombuffer(arena.private, np.uint8, length, offset).tobytes()


class TestMoving:
    def test_content(self, file, source):
        blocks = [file.write(source, at, LENGTH) for at in (0, 2 * LENGTH, LENGTH)]
        assert {block.arena for block in blocks} == {NUMBER}
        for block, at in zip(blocks, (0, 2 * LENGTH, LENGTH), strict=True):
            assert content(file.arena, block.offset, LENGTH) == content(source, at, LENGTH)
        assert file.used == 3 * LENGTH

    def test_without_sendfile(self, file, source, monkeypatch):
        monkeypatch.setattr(spill, "BETWEEN_FILES", False)
        file.write(source, 0, LENGTH)
        block = file.write(source, LENGTH, 2 * LENGTH)
        assert content(file.arena, block.offset, 2 * LENGTH) == content(source, LENGTH, 2 * LENGTH)

    def test_sendfile_in_pieces_and_then_refused(self, file, source, monkeypatch):
        pieces = iter([5 * PAGE + 12, 7])

        def refuse(target, origin, offset, count, real=os.sendfile):
            piece = next(pieces, None)
            if piece is None:
                raise OSError(22, "Invalid argument")
            return real(target, origin, offset, min(count, piece))

        monkeypatch.setattr(os, "sendfile", refuse)
        file.write(source, 0, LENGTH)
        block = file.write(source, LENGTH, LENGTH)
        assert content(file.arena, block.offset, LENGTH) == content(source, LENGTH, LENGTH)

    def test_another_process_reads_it_and_keeps_changes_to_itself(self, file, source):
        block = file.write(source, 0, LENGTH)
        other = Arena.attach(file.arena.handle)
        reader = Reader({NUMBER: other})
        view = reader.view(Extent(*block, 0, LENGTH, LENGTH))
        assert view.tobytes() == content(source, 0, LENGTH)
        assert reader.is_clean(Extent(*block, 0, LENGTH, LENGTH))
        view[:] = 1
        assert content(file.arena, block.offset, LENGTH) == content(source, 0, LENGTH)
        del view
        assert reader.view(Extent(*block, 0, LENGTH, LENGTH)).tobytes() == content(source, 0, LENGTH)
        reader.close()
        other.close()


class TestSpace:
    def test_it_is_given_back(self, file, source):
        first, second = file.write(source, 0, LENGTH), file.write(source, LENGTH, LENGTH)
        assert file.arena.occupied() >= 2 * LENGTH
        file.free(first, LENGTH)
        assert file.arena.occupied() < 2 * LENGTH
        assert content(file.arena, second.offset, LENGTH) == content(source, LENGTH, LENGTH)
        file.free(second, LENGTH)
        assert file.used == 0
        assert file.arena.occupied() < LENGTH

    def test_it_is_used_again(self, file, source):
        first = file.write(source, 0, LENGTH)
        file.free(first, LENGTH)
        again = file.write(source, LENGTH, LENGTH)
        assert again == first
        assert content(file.arena, again.offset, LENGTH) == content(source, LENGTH, LENGTH)

    def test_where_it_cannot_be_given_back_it_is_used_again(self, file, source, monkeypatch, caplog):
        def refuse(*_):
            raise OSError(28, "No space left on device")

        first = file.write(source, 0, LENGTH)
        with monkeypatch.context() as patch:
            patch.setattr(Arena, "punch", refuse)
            file.free(first, LENGTH)
        assert "cannot be given back" in caplog.text
        again = file.write(source, LENGTH, LENGTH)
        assert again == first
        assert content(file.arena, again.offset, LENGTH) == content(source, LENGTH, LENGTH)

    def test_nothing_is_freed_twice(self, file, source):
        block = file.write(source, 0, LENGTH)
        file.free(block, LENGTH)
        with pytest.raises(ValueError, match="not taken"):
            file.free(block, LENGTH)
        assert file.used == 0


class TestFailure:
    def test_limit(self, tmp_path, source):
        with SpillFile(tmp_path, NUMBER, limit=2 * LENGTH) as file:
            first = file.write(source, 0, LENGTH)
            with pytest.raises(SpillFull, match=rf"{2 * LENGTH} bytes .*spill_limit allows {2 * LENGTH}"):
                file.write(source, 0, 2 * LENGTH)
            file.free(first, LENGTH)
            file.write(source, 0, 2 * LENGTH)

    def test_nothing_may_be_there(self, tmp_path, source):
        with SpillFile(tmp_path, NUMBER, limit=0) as file, pytest.raises(SpillFull, match="allows 0"):
            file.write(source, 0, LENGTH)

    def test_disk_full(self, tmp_path, source, small_folder):
        with SpillFile(small_folder, NUMBER) as file:
            blocks = [file.write(source, 0, LENGTH), file.write(source, 0, LENGTH)]
            with pytest.raises(SpillFull, match="the disk has"):
                blocks.extend(file.write(source, 0, LENGTH) for _ in range(10))
            assert file.used == len(blocks) * LENGTH
            for block in blocks:
                assert content(file.arena, block.offset, LENGTH) == content(source, 0, LENGTH)
            file.free(blocks.pop(), LENGTH)
            file.write(source, 0, LENGTH)

    @pytest.mark.parametrize("function", ["sendfile", "posix_fallocate"])
    def test_disk_full_in_the_middle(self, file, source, monkeypatch, function):
        self._fail_once(monkeypatch, function, 28)
        with pytest.raises(SpillFull, match="smaller chunks"):
            file.write(source, 0, LENGTH)
        self._has_nothing(file, source)

    def test_a_disk_that_fails(self, file, source, monkeypatch):
        self._fail_once(monkeypatch, "sendfile", 5)
        with pytest.raises(SpillError, match="Input/output error") as caught:
            file.write(source, 0, LENGTH)
        assert not isinstance(caught.value, SpillFull)
        self._has_nothing(file, source)

    def _fail_once(self, monkeypatch, function, number):
        real, calls = getattr(os, function), []

        def fail(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise OSError(number, os.strerror(number))
            if function == "sendfile":
                target, origin, offset, count = arguments
                return real(target, origin, offset, min(count, LENGTH // 2))
            return real(*arguments)

        if function == "posix_fallocate":
            calls.append(1)
        monkeypatch.setattr(os, function, fail)

    def _has_nothing(self, file, source):
        assert file.used == 0
        assert file.arena.occupied() < LENGTH
        block = file.write(source, LENGTH, LENGTH)
        assert content(file.arena, block.offset, LENGTH) == content(source, LENGTH, LENGTH)

    def test_files_may_not_be_long(self, script, tmp_path):
        out = script(
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from graphmill.errors import SpillFull\n"
            "from graphmill.memory.arena import Arena\n"
            "from graphmill.memory.spill import SpillFile\n"
            "with Arena.create(0, 1 << 20) as source:\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
            "    with SpillFile(Path(sys.argv[1]), 1) as file:\n"
            "        file.write(source, 0, 1 << 19)\n"
            "        try:\n"
            "            file.write(source, 0, 1 << 20)\n"
            "        except SpillFull as error:\n"
            "            print(error)\n"
            "        print(file.used)\n",
            tmp_path,
        )
        assert f"no longer file than {1 << 20}" in out
        assert out.endswith(f"\n{1 << 19}\n")
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_none(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(SpillError, match="spill_folder= takes another folder"):
            SpillFile(tmp_path / "x", NUMBER)


class TestTheEnd:
    def test_nothing_is_left(self, tmp_path, source):
        with SpillFile(tmp_path, NUMBER) as file:
            assert stat.S_IMODE(file.folder.stat().st_mode) == 0o700
            assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]
            assert [stat.S_IMODE(path.stat().st_mode) for path in file.folder.iterdir()] == [0o600]
            file.write(source, 0, LENGTH)
        file.close()
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_of_one_that_nobody_closed(self, script, tmp_path):
        script(
            "import sys\nfrom pathlib import Path\nfrom graphmill.memory.spill import SpillFile\n"
            "file = SpillFile(Path(sys.argv[1]), 1)\nassert file.folder.is_dir()",
            tmp_path,
        )
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_folder(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m none {folder} 2>/dev/null"):
        pytest.skip("nothing can be mounted here")
    yield folder
    assert os.system(f"umount {folder}") == 0


def mounts(monkeypatch, **kinds):
    """Pretend that folders are on file systems of these kinds."""
    monkeypatch.setattr(spill, "file_system", lambda folder: kinds.get(folder.name, "ext4"))


class TestFolder:
    def test_the_default_is_no_memory(self):
        found = default_folder()
        assert found is None or file_system(found) not in spill.IN_MEMORY

    @pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no such folder here")
    def test_shared_memory_is_memory(self):
        assert file_system(Path("/dev/shm")) == "tmpfs"
        assert best_folder([Path("/dev/shm")]) is None

    def test_the_innermost_and_last_mount_counts(self, tmp_path, monkeypatch):
        def mount(place, kind):
            return types.SimpleNamespace(mountpoint=str(place), fstype=kind)

        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "ab").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
        table = [mount(tmp_path / "a", "xfs"), mount("/", "ext4"), mount(tmp_path / "a", "tmpfs")]
        monkeypatch.setattr(spill.psutil, "disk_partitions", lambda **_: table)
        assert file_system(tmp_path / "a" / "b") == "tmpfs"
        assert file_system(tmp_path / "link") == "tmpfs"
        assert file_system(tmp_path / "ab") == "ext4"

    def test_the_first_of_equals_but_no_memory_and_nothing_remote(self, tmp_path, monkeypatch):
        folders = [tmp_path / name for name in ("missing", "memory", "remote", "first", "second")]
        for folder in folders[1:]:
            folder.mkdir()
        mounts(monkeypatch, memory="tmpfs", remote="nfs4")
        assert best_folder(folders) == tmp_path / "first"
        assert best_folder(folders[:3]) == tmp_path / "remote"
        assert best_folder(folders[:2]) is None

    def test_a_disk_that_turns_comes_after_one_that_does_not(self, tmp_path, monkeypatch):
        folders = [tmp_path / name for name in ("disk", "flash")]
        for folder in folders:
            folder.mkdir()
        monkeypatch.setattr(spill, "turns", lambda folder: folder.name == "disk")
        mounts(monkeypatch)
        assert best_folder(folders) == tmp_path / "flash"

    @pytest.mark.parametrize("name", ["missing", "file", "locked"])
    def test_one_that_cannot_be_used(self, tmp_path, name, monkeypatch):
        (tmp_path / "file").write_text("")
        (tmp_path / "locked").mkdir()
        # Root may write anywhere.
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
        with pytest.raises(ConfigError, match=f"spill_folder must be .*{name}"):
            checked_folder(tmp_path / name)

    def test_memory_that_was_asked_for(self, tmp_path, monkeypatch, caplog):
        mounts(monkeypatch, **{tmp_path.name: "tmpfs"})
        assert checked_folder(tmp_path) == tmp_path
        assert "stays in memory" in caplog.text

    def test_a_disk_that_was_asked_for(self, tmp_path, monkeypatch, caplog):
        mounts(monkeypatch)
        assert checked_folder(tmp_path) == tmp_path
        assert caplog.text == ""
