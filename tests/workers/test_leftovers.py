"""Nothing is ever removed but what carries a process's own mark."""

import os
from pathlib import Path

import pytest

from graphmill.workers.leftovers import is_own, mark, remove

PARENT = 42


def unsafe(folder):
    """Paths that are somebody else's, or could be."""
    return [
        "",
        ".",
        "..",
        "/",
        "/tmp",
        str(Path.home()),
        str(Path.cwd()),
        str(folder),
        str(folder / "data"),
        str(folder / "graphmill"),
        str(folder / "graphmill-42"),
        str(folder / "graphmill-42-"),
        str(folder / "graphmill-421-0-0"),
        str(folder / "graphmill-42-0-0" / ".."),
        str(folder / "graphmill-42-0-0" / "data"),
        "graphmill-42-0-0",
        "data/graphmill-42-0-0",
    ]


def fill(folder):
    for name in [
        "data",
        "graphmill",
        "graphmill-42",
        "graphmill-42-",
        "graphmill-421-0-0",
        "graphmill-42-0-0",
    ]:
        (folder / name / "data").mkdir(parents=True)
        (folder / name / "data" / "file").write_text("precious")


def contents(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_what_is_not_ones_own_is_left_alone(tmp_path, monkeypatch):
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    for path in unsafe(tmp_path):
        if Path(path) in (Path("/tmp"), Path.home()):
            continue  # not even here
        assert not remove(path, PARENT), path
        assert contents(tmp_path) == before, path


def test_only_own_names_are_own(tmp_path):
    assert not any(is_own(path, PARENT) for path in unsafe(tmp_path))
    assert is_own(str(tmp_path / "graphmill-42-0-0"), PARENT)


@pytest.mark.parametrize("unsafe_path", unsafe(Path("/nowhere")))
def test_pool_guards_only_its_own(make_pool, unsafe_path):
    pool = make_pool()
    with pytest.raises(ValueError, match="will not be removed"):
        pool.guard(f"/nowhere/{mark(os.getpid())}0", unsafe_path.replace("42", str(os.getpid() + 1)))
    assert pool._guarded == {}


def test_own_things_are_removed(tmp_path):
    fill(tmp_path)
    kept = tmp_path / "data"
    link, dangling, file = (tmp_path / f"graphmill-42-{name}" for name in ("link", "dangling", "file"))
    link.symlink_to(kept)
    dangling.symlink_to(tmp_path / "nowhere")
    file.write_text("")
    inside = tmp_path / "graphmill-42-0-0" / "link"
    inside.symlink_to(kept)
    for path in (link, dangling, file, tmp_path / "graphmill-42-0-0", tmp_path / "graphmill-42-gone"):
        assert remove(str(path), PARENT)
        assert not path.exists()
    assert (kept / "data" / "file").read_text() == "precious"
