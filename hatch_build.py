"""Compiles the part of graphmill that is C, where that can be done.

It is optional: without it results are copied into shared memory instead of being made there. So a build
without a compiler, or with GRAPHMILL_NO_COMPILER set, is not an error; it gives a wheel for any platform.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "src/graphmill/memory"

#: In seconds; it takes less than one.
PATIENCE = 120


class CompileHandler(BuildHookInterface[Any]):
    """Puts `_handler.so` beside `_handler.c`, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what kind of wheel it is to be.

        Parameters
        ----------
        version : str
            The kind of build: standard or editable.
        build_data : dict
            What the wheel is made from; changed here.
        """
        library = Path(self.root, FOLDER, "_handler.so")
        reason = compile_library(library.with_suffix(".c"), library)
        if reason is not None:
            if version == "editable":
                library.unlink(missing_ok=True)  # one of an earlier build may be of another version
            self.app.display_warning(f"graphmill: built without {library.name}, results are copied: {reason}")
            return
        build_data["artifacts"].append(f"/{FOLDER}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"


def compile_library(source: Path, library: Path) -> str | None:
    """Compile a file; return why not, if it could not be done.

    It takes its place at once, so that processes that use the one before are not disturbed.
    """
    if os.environ.get("GRAPHMILL_NO_COMPILER"):
        return "GRAPHMILL_NO_COMPILER is set"
    new = library.with_name(f"{library.name}.{os.getpid()}")
    command = [*shlex.split(os.environ.get("CC") or "cc"), *flags(), "-o", str(new), str(source)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603  # the user's own compiler
        if run.returncode:
            return f"{command[0]} failed: {' '.join(run.stderr.split())[:500]}"
        new.replace(library)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        new.unlink(missing_ok=True)
    return None


def flags() -> list[str]:
    """Tell how this system makes a shared library that takes Python's functions from the process."""
    common = ["-O2", "-std=c11", "-fPIC"]
    if sys.platform != "darwin":
        return [*common, "-shared"]
    both = ["-arch", "x86_64", "-arch", "arm64"] if platform_tag().endswith("universal2") else []
    return [*common, "-dynamiclib", "-undefined", "dynamic_lookup", *both]


def platform_tag() -> str:
    """Name this platform as wheels do."""
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
