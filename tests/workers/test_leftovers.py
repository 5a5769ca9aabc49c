"""Nothing is ever removed but what carries a process's own mark."""

import os
from pathlib import Path

import pytest

from graphmill.workers.leftovers import is_own, mark, remove

PARENT = 42


#: Paths that are somebody else's, or could be, seen from a folder.
RELATIVE = ["", ".", "..", "graphmill-42-0-0", "data/graphmill-42-0-0", "../data"]
INSIDE = [
    ".",
    "data",
    "graphmill",
    "graphmill-42",
    "graphmill-42-",
    "graphmill-421-0-0",
    "graphmill-42-0-0/..",
    "graphmill-42-0-0/data",
]
#: Only ever asked about, never given to `remove`: a fault there must not cost more than a test.
ELSEWHERE = ["/", "/tmp", "/home/me", "/dev/shm/data", str(Path.home())]


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


@pytest.mark.parametrize("path", RELATIVE)
def test_relative_paths_are_left_alone(tmp_path, monkeypatch, path):
    inner = tmp_path / "inner"
    fill(tmp_path)
    fill(inner)
    monkeypatch.chdir(inner)
    before = contents(tmp_path)
    assert not remove(path, PARENT)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", INSIDE)
def test_what_is_not_ones_own_is_left_alone(tmp_path, name):
    inner = tmp_path / "inner"
    fill(inner)
    before = contents(tmp_path)
    assert not remove(f"{inner}/{name}", PARENT)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("path", [*RELATIVE, *(f"/nowhere/{name}" for name in INSIDE), *ELSEWHERE])
def test_only_own_names_are_own(make_pool, path):
    assert not is_own(path, PARENT)
    mine = os.getpid()
    pool = make_pool()
    with pytest.raises(ValueError, match="will not be removed"):
        pool.guard(f"/nowhere/{mark(mine)}0", path.replace("42", str(mine), 1))
    assert pool._supervisor.guarded == {}


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
