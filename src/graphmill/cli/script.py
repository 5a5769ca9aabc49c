"""A program run within this process, just as Python itself would run it.

Knows how Python starts programs. Must not know of graphs.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from graphmill.errors import CommandError

#: Means that the program is read from stdin.
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and as what."""

    #: What it finds as its name in `sys.argv`.
    name: str
    #: Where it looks for modules first.
    folder: str
    #: What `__main__` knows of itself.
    attributes: dict[str, Any]
    #: Where the code comes from: source, which is yet to be compiled, or code.
    code: CodeType | bytes


def find_script(name: str) -> Program:
    """Find a script: a file, a folder or archive that has a `__main__`, or what comes from stdin.

    Raises
    ------
    CommandError
        If there is none.
    """
    if name == STDIN:
        return Program(name, "", {}, sys.stdin.buffer.read())
    path = Path(name)
    try:
        if path.is_dir() or path.suffix in (".zip", ".pyz"):
            return _find_archive(name)
        with io.open_code(str(path.absolute())) as file:
            source = file.read()
    except OSError as error:
        raise CommandError(f"The script {name!r} cannot be read: {error.strerror or error}") from error
    # As Python does: what a link leads to has its modules beside it.
    return Program(name, str(path.resolve().parent), {"__file__": str(path.absolute())}, source)


def _find_archive(name: str) -> Program:
    spec = importlib.machinery.PathFinder.find_spec("__main__", [str(Path(name).absolute())])
    if spec is None:
        raise CommandError(f"{name!r} has no __main__.py that could be run")
    return _of_spec(spec, name, str(Path(name).absolute()))


def find_module(name: str) -> Program:
    """Find a module, or the `__main__` of a package, as ``python -m`` does.

    Raises
    ------
    CommandError
        If there is none that could be run.
    """
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                raise CommandError(f"{name!r} is a package without a __main__, and cannot be run")
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the package's own trouble
        spec = None
    except ValueError:  # no name of a module
        spec = None
    if spec is None:
        raise CommandError(
            f"There is no module {name!r}: Python does not find it here or among what is installed"
        )
    return _of_spec(spec, str(spec.origin), str(Path.cwd()))


def _of_spec(spec: importlib.machinery.ModuleSpec, name: str, folder: str) -> Program:
    code = spec.loader.get_code(spec.name) if hasattr(spec.loader, "get_code") else None  # type: ignore[union-attr]
    if code is None:
        raise CommandError(f"{spec.name!r} has no code that could be run")
    attributes = {
        "__spec__": spec,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__file__": spec.origin,
        "__cached__": spec.cached,
    }
    return Program(name, folder, attributes, code)


def prepare(folder: str) -> None:
    """Have modules be looked for as for a program of its own, not for this one."""
    if not sys.flags.safe_path:
        sys.path[0] = folder


def execute(program: Program, arguments: Sequence[str]) -> int:
    """Run a program as `__main__`; what it raises is shown as Python shows it.

    Returns
    -------
    int
        The exit code.

    Raises
    ------
    KeyboardInterrupt
        If the program does not deal with that.
    """
    sys.argv[:] = [program.name, *arguments]
    prepare(program.folder)
    # It stays there: functions of the program may run until the interpreter ends.
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__dict__.update(
        {"__builtins__": __builtins__, "__spec__": None, "__package__": None, **program.attributes}
    )
    try:
        code = program.code
        if isinstance(code, bytes):
            name = main.__dict__.get("__file__", "<stdin>")
            code = compile(code, name, "exec", dont_inherit=True)
        exec(code, main.__dict__)  # noqa: S102 - that is what it is for
    except SystemExit as error:
        return _exit_code(error.code)
    except KeyboardInterrupt as error:
        _hide_ours(error)
        raise
    except BaseException as error:  # noqa: BLE001 - as the interpreter
        _hide_ours(error)
        sys.stdout.flush()
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    return 0


def _hide_ours(error: BaseException) -> None:
    """Take the frame of this module out of a traceback."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _exit_code(code: object) -> int:
    """Read what was given to `sys.exit`: a text is printed."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stdout.flush()
    print(code, file=sys.stderr)
    return 1
