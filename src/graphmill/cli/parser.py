"""What commands there are, and what they take. Knows no more than what `--help` says."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from graphmill.config.settings import did_you_mean

#: Help is not set wider than this, in characters: longer lines are hard to read.
_WIDEST: Final = 100

_EPILOG: Final = """\
examples:
  graphmill run analysis.py              a script as it is, on every core
  graphmill run --memory-limit 8GB --report report.html analysis.py 2024
  graphmill info                         what this machine gives

exit codes:
  0    done; of `run`: what the script ended with
  1    the script raised an exception, or the command failed
  2    wrong arguments or settings, or something is not installed
  130  interrupted by Ctrl-C
  141  whoever read the output has gone

`graphmill COMMAND --help` says more.
"""

_RUN: Final = """\
Runs a Python program as `python SCRIPT` does, with graphmill as the scheduler of Dask. The program needs no
change and no `if __name__ == "__main__"`. What it says itself goes first: `compute(scheduler="threads")`,
`dask.config.set(scheduler=...)` or a `distributed.Client` are used as they are.

At the end, one line on stderr tells the time, the number of tasks, the most memory, and what went to disk.
"""

_RUN_EPILOG: Final = """\
examples:
  graphmill run analysis.py --year 2024      what follows is the script's
  graphmill run --workers 8 --memory-limit 60% analysis.py
  graphmill run --report report.html -m mypackage.analysis
  cat analysis.py | graphmill run -

Options go before SCRIPT. The exit code is the script's: 0, what it gave to sys.exit, or 1 after an exception;
2 if it was not started, 130 after Ctrl-C.
"""

_WORKER: Final = """\
Connects to the scheduler of a Dask cluster and runs tasks in processes that share memory, as many at a time
as this machine has cores. One such worker for each machine is enough. It ends with Ctrl-C, or when the
scheduler does.
"""

_WORKER_EPILOG: Final = """\
examples:
  graphmill worker tcp://10.0.0.1:8786
  graphmill worker --workers 16 --memory-limit 60% tcp://10.0.0.1:8786
  graphmill run --cluster tcp://10.0.0.1:8786 analysis.py      and this uses them
"""

_CONFIG_EPILOG: Final = """\
what goes first:
  1. arguments in Python, such as Engine(num_workers=4)
  2. graphmill.config.set(...)
  3. options of `graphmill run`
  4. environment variables GRAPHMILL_<NAME>
  5. dask.config: graphmill.<name>, then <name>
  6. the project's graphmill.toml, or [tool.graphmill] in pyproject.toml:
     in this folder, or the nearest one above
  7. the user's graphmill.toml, in the folder for settings
  8. the default

In a file, sections [machine."PATTERN"] that match the host name go before the rest, the last one first.

examples:
  graphmill config                           what holds here, and why
  graphmill config explain memory_limit      all that is said about it
  graphmill config set --user memory_limit 60%
  graphmill config set --machine "node-*" num_workers 24
"""

_INFO_EPILOG: Final = """\
examples:
  graphmill info
  graphmill info --no-disk-test --json | jq .will_use.num_workers
"""

_CLEAN_EPILOG: Final = """\
An engine removes what it made, however its program ends, and so does the next one that starts; this is for
what is left nevertheless, as after a power cut. Only what carries graphmill's mark, belongs to this user and
is locked by nobody is touched.

examples:
  graphmill clean --dry-run
  graphmill clean --folder /scratch/me
"""

_BENCH_EPILOG: Final = """\
Each computation runs in a process of its own, twice, and the better time counts. It takes about two minutes,
and 2 GB of memory; with --quick, half a minute and little memory, and says little.

examples:
  graphmill bench
  graphmill bench --only python --only tiny --json
"""

_COMPLETION_EPILOG: Final = """\
examples:
  bash   eval "$(graphmill completion bash)"     in ~/.bashrc
  zsh    eval "$(graphmill completion zsh)"      in ~/.zshrc, after compinit
  fish   graphmill completion fish > ~/.config/fish/completions/graphmill.fish
"""


class _Formatter(argparse.HelpFormatter):
    """Sets paragraphs, and keeps lists and examples as they are, on lines that can be read."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        kwargs["width"] = min(shutil.get_terminal_size().columns, _WIDEST) - 2
        super().__init__(prog, max_help_position=28, **kwargs)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if "\n  " in part else textwrap.fill(part, width, initial_indent=indent)
            for part in text.rstrip().split("\n\n")
        )


class Parser(argparse.ArgumentParser):
    """A parser as all commands here want it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An option that is cut short might mean another one in the next version.
        super().__init__(*args, **{"formatter_class": _Formatter, "allow_abbrev": False, **kwargs})

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """End with what is wrong with arguments that it does not know."""
        options = [name for action in self._actions for name in action.option_strings]
        self.error(f"unrecognized arguments: {' '.join(arguments)}{did_you_mean(arguments[0], options)}")


def make_parser() -> Parser:
    """Make the parser of the command line."""
    parser = Parser(prog="graphmill", description="Runs Dask on every core of one machine.", epilog=_EPILOG)
    # The package itself stands above this module, and has been loaded before it.
    version = sys.modules["graphmill"].__version__
    parser.add_argument("--version", action="version", version=f"graphmill {version}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands", parser_class=Parser)

    def command(name: str, module: str, what: str, **kwargs: Any) -> Parser:
        made: Parser = commands.add_parser(name, help=what, **{"description": f"{what}.", **kwargs})
        made.set_defaults(module_of_command=module, parser_of_command=made)
        made.add_argument(
            "--traceback", action="store_true", help="show where an error of graphmill's own comes from"
        )
        return made

    _add_run(command("run", "run", "Run a script with graphmill", description=_RUN, epilog=_RUN_EPILOG))
    _add_worker(
        command(
            "worker",
            "worker",
            "Be one worker of a Dask cluster, with every core of this machine",
            description=_WORKER,
            epilog=_WORKER_EPILOG,
        )
    )
    _add_info(command("info", "info", "Tell what this machine gives", epilog=_INFO_EPILOG))
    _add_config(command("config", "settings", "Show and change settings", epilog=_CONFIG_EPILOG))
    _add_clean(command("clean", "clean", "Remove what dead engines left", epilog=_CLEAN_EPILOG))
    _add_bench(command("bench", "bench", "Compare with Dask's threads here", epilog=_BENCH_EPILOG))
    _add_completion(
        command("completion", "completion", "Print completion for a shell", epilog=_COMPLETION_EPILOG)
    )
    return parser


def _add_settings(parser: Parser) -> None:
    parser.add_argument("--workers", metavar="N", help='how many worker processes, or "auto"')
    parser.add_argument("--memory-limit", metavar="AMOUNT", help='such as 8GB, or a part such as "60%%"')
    parser.add_argument("--spill-dir", metavar="DIR", help="where blocks go on disk when memory is short")


def _add_worker(parser: Parser) -> None:
    _add_settings(parser)
    parser.add_argument("--name", help="what the scheduler calls it; by default its address")
    parser.add_argument("scheduler", metavar="SCHEDULER", help="the address, such as tcp://10.0.0.1:8786")


def _add_run(parser: Parser) -> None:
    parser.usage = "graphmill run [options] (SCRIPT | -m MODULE | -) [arguments]"
    _add_settings(parser)
    parser.add_argument("--cluster", metavar="SCHEDULER", help="run on a Dask cluster instead of here")
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        help="show how far it is; by default on a terminal",
    )
    parser.add_argument("--report", metavar="FILE.html", help="write a report with pictures at the end")
    parser.add_argument("--trace", metavar="FILE.json", help="write a trace for Perfetto at the end")
    parser.add_argument("--dashboard", action="store_true", help="serve live pictures to browsers here")
    parser.add_argument("--quiet", "-q", action="store_true", help="leave the line at the end out")
    parser.add_argument("-m", dest="as_module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("program", metavar="SCRIPT", help="the program; - reads it from stdin")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the program finds in sys.argv")


def _add_info(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON; amounts are bytes")
    parser.add_argument(
        "--no-disk-test", action="store_true", help="do not measure how fast the disk for spilling is"
    )


def _add_config(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(action="show", name=None)
    actions = parser.add_subparsers(metavar="ACTION", title="actions", parser_class=Parser)

    def action(name: str, what: str) -> Parser:
        made: Parser = actions.add_parser(name, help=what, description=f"{what}.")
        made.set_defaults(action=name)
        return made

    show = action("show", "Show what holds here, and where it comes from")
    explain = action("explain", "Show all that is said about settings, what goes first first")
    explain.add_argument("name", nargs="?", help="the setting; by default all")
    for each in (show, explain):
        each.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")
    change, remove = action("set", "Set something in a file"), action("unset", "Remove it from a file")
    for each in (change, remove):
        each.add_argument("name", help="the setting")
        where = each.add_mutually_exclusive_group()
        where.add_argument("--user", action="store_true", help="in the user's file")
        where.add_argument("--project", action="store_true", help="in the project's file (default)")
        each.add_argument("--machine", metavar="PATTERN", help="only for machines with such a host name")
    change.add_argument("value", help="what it is to be")


def _add_clean(parser: Parser) -> None:
    parser.add_argument("--dry-run", "-n", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--folder", metavar="DIR", action="append", default=[], help="another folder to look in; repeatable"
    )


def _add_bench(parser: Parser) -> None:
    parser.add_argument("--quick", action="store_true", help="small data")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this computation; repeatable")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
