"""The command ``graphmill``.

Each command has a module of its own, which is loaded when the command is given; `parser` knows what they are
called and what they take.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum

from graphmill.cli.output import complain
from graphmill.cli.parser import make_parser
from graphmill.errors import CommandError, ConfigError, GraphmillError, MissingExtra


class ExitCode(IntEnum):
    """What the command ends with, where no script says otherwise."""

    DONE = 0
    FAILED = 1
    #: Arguments or settings are wrong, or something is not installed.
    USAGE = 2
    #: Whoever read the output has gone.
    PIPE = 128 + signal.SIGPIPE if hasattr(signal, "SIGPIPE") else 1
    INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Parameters
    ----------
    arguments
        By default those of this process.

    Returns
    -------
    int
        The exit code.
    """
    parser = make_parser()
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        chosen.parser_of_command.refuse(unknown)
    try:
        code = importlib.import_module(f"graphmill.cli.{chosen.module_of_command}").run(chosen)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _report("interrupted", ExitCode.INTERRUPTED, with_traceback=chosen.traceback)
    except BrokenPipeError:
        # Nothing can be said to anybody; nor may the interpreter try when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.PIPE
    except (CommandError, ConfigError, MissingExtra) as error:
        return _report(str(error), ExitCode.USAGE, with_traceback=chosen.traceback)
    except (GraphmillError, OSError) as error:
        return _report(str(error), ExitCode.FAILED, with_traceback=chosen.traceback)
    return int(code)


def _report(message: str, code: ExitCode, *, with_traceback: bool) -> ExitCode:
    if with_traceback:
        traceback.print_exc()
    else:
        complain(message)
    return code
