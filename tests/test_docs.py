"""Every block of code in the README and the documentation runs as it stands there.

A page's Python blocks are one program, run in an empty folder that has a small `temperature.zarr` and a
`script.py`. Of commands, those of graphmill are run. A block under a comment ``not run: reason`` is left out.
"""

import doctest
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import graphmill
from graphmill.config import files

ROOT = Path(__file__).parents[1]
SOURCE = str(Path(graphmill.__file__).parents[1])
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Seconds that a page, or a command, may take.
LIMIT = 100

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of code."""

    language: str
    code: str
    #: Why it is not run; None if it is.
    reason: str | None


def blocks_of(page):
    return [
        Block(found["language"], found["code"], found["reason"]) for found in BLOCK.finditer(page.read_text())
    ]


def pages_with(language):
    return [
        pytest.param(page, id=page.name)
        for page in PAGES
        if any(block.language == language and not block.reason for block in blocks_of(page))
    ]


def run(arguments, folder):
    """Run a command, with the source that is tested; give what it printed."""
    environment = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "100"}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    """An empty folder but for what pages take for granted."""
    da = pytest.importorskip("dask.array")
    pytest.importorskip("zarr")
    array = da.random.default_rng(0).normal(size=(8, 16, 16), chunks=(4, 16, 16))
    array.to_zarr(str(tmp_path / "temperature.zarr"), compute=True)
    (tmp_path / "script.py").write_text(
        "import dask.array as da\n\nprint(float(da.from_zarr('temperature.zarr').mean().compute()))\n"
    )
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_of_a_kind_that_is_tested(page):
    kinds = {block.language for block in blocks_of(page) if not block.reason}
    assert kinds <= {"python", "pycon", "console", "toml", "text", ""}


@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page, folder):
    blocks = [block for block in blocks_of(page) if block.language == "python" and not block.reason]
    text = "\n".join(block.code for block in blocks if not block.code.startswith(">>>"))
    if text:
        (folder / "page.py").write_text(text)
        run([sys.executable, "page.py"], folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sessions(page):
    results = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert results.failed == 0


@pytest.mark.parametrize("page", pages_with("console"))
def test_commands(page, folder):
    commands = [
        line.removeprefix("$ ")
        for block in blocks_of(page)
        if block.language == "console" and not block.reason
        for line in block.code.splitlines()
        if line.startswith("$ ")
    ]
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        assert program == "graphmill", f"{command!r} cannot be run here: say why it is not"
        run([sys.executable, "-m", "graphmill", *arguments], folder)


@pytest.mark.parametrize("page", pages_with("toml"))
def test_settings(page):
    for block in blocks_of(page):
        if block.language == "toml" and not block.reason:
            name = "pyproject.toml" if "[tool.graphmill" in block.code else "graphmill.toml"
            assert files.parse(Path(name), block.code).sections


def test_the_readme_has_sessions():
    results = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
