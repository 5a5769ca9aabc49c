"""The command in processes of its own, in a folder of its own, as users call it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import graphmill
from tests.engine.conftest import left_of

SOURCE = str(Path(graphmill.__file__).parents[1])
#: Seconds until a command must have ended.
LIMIT = 60


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command that has ended said."""

    code: int
    out: str
    err: str


def environment(folder, more=()):
    """Make an environment in which only the settings of a test hold."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRAPHMILL_")}
    return {
        **kept,
        "PYTHONPATH": SOURCE,
        "XDG_CONFIG_HOME": str(folder / "home"),
        "COLUMNS": "100",
        "PYTHONWARNINGS": "error",
        **dict(more),
    }


@pytest.fixture
def command(tmp_path):
    """Run `python -m graphmill` with arguments; see that nothing is left of it."""

    def run(*arguments, stdin="", env=(), cwd=None, program=("-m", "graphmill")):
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd or tmp_path,
            env=environment(tmp_path, env),
        )
        try:
            out, err = process.communicate(stdin, timeout=LIMIT)
        finally:
            process.kill()
        assert left_of(process.pid) == []
        return Ended(process.returncode, out, err)

    return run


@pytest.fixture
def script(tmp_path):
    """Write a script; returns its name."""

    def write(source, name="script.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
        return name

    return write
