"""Settings of whoever runs the tests must not change them."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from graphmill import config

# A shell has it ignored in what it starts in the background, and so would all programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["XDG_CONFIG_HOME"] = str(Path(tempfile.gettempdir()) / "no-settings-for-tests-of-graphmill")
for variable in [
    name for name in os.environ if name.startswith("GRAPHMILL_") and name != "GRAPHMILL_NO_COMPILER"
]:
    del os.environ[variable]


@pytest.fixture
def settings_files(tmp_path, monkeypatch):
    """Write the user's and the project's files of settings, and have them hold in this process."""

    def write(*, user=None, project=None, pyproject=None, machine=None):
        folders = {"user": tmp_path / "home" / "graphmill", "project": tmp_path / "project"}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(folders["project"])
        if machine is not None:
            monkeypatch.setenv("GRAPHMILL_MACHINE", machine)
        for text, path in [
            (user, folders["user"] / "graphmill.toml"),
            (project, folders["project"] / "graphmill.toml"),
            (pyproject, folders["project"] / "pyproject.toml"),
        ]:
            if text is not None:
                path.write_text(text)
        config.refresh()
        return folders["project"]

    yield write
    config.refresh()
