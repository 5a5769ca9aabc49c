"""``graphmill completion``: what a shell needs to complete the command line, made from its parser."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from graphmill.cli.parser import make_parser
from graphmill.config.files import KEYS

#: Where files are what comes next: positional arguments by name, and options by what stands for their value.
_FILES = ("program", "arguments", "FILE.html", "FILE.json", "DIR")


@dataclass(frozen=True, slots=True)
class Context:
    """What may follow some words of the command line."""

    #: The command, and its action if it has any.
    words: tuple[str, ...]
    #: Commands or values that may follow, and what they are.
    values: dict[str, str]
    #: Options, and what they are.
    options: dict[str, str]
    #: Options that are followed by a value of any kind, and those followed by a file's name.
    with_value: tuple[str, ...]
    with_file: tuple[str, ...]
    #: Whether the name of a file may follow.
    files: bool


def run(arguments: argparse.Namespace) -> int:
    """Print the script for a shell."""
    contexts = list(_contexts(make_parser(), ()))
    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](contexts))
    return 0


def _contexts(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[Context]:
    # argparse has no public way to look at what was added; its own help is made from this, too.
    actions = parser._actions  # noqa: SLF001 - see above
    commands = [action for action in actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    values: dict[str, str] = {}
    for command in commands:
        values.update({choice.dest: choice.help or "" for choice in command._choices_actions})  # noqa: SLF001
    positional = [action for action in actions if not action.option_strings and action not in commands]
    for action in positional:
        values.update(dict.fromkeys(action.choices or (), ""))
        if action.dest == "name":
            values.update(dict.fromkeys(KEYS, ""))
    optional = [action for action in actions if action.option_strings]
    takes = [action for action in optional if action.nargs != 0]
    yield Context(
        words,
        values,
        {name: action.help or "" for action in optional for name in action.option_strings},
        tuple(name for action in takes for name in action.option_strings),
        tuple(name for action in takes if action.metavar in _FILES for name in action.option_strings),
        any(action.dest in _FILES for action in positional),
    )
    for command in commands:
        for name, inner in command.choices.items():
            yield from _contexts(inner, (*words, name))


def _bash(contexts: list[Context]) -> str:
    cases = "\n".join(
        f"    {shlex.quote(' '.join(context.words))})\n"
        f"      words={shlex.quote(' '.join([*context.values, *context.options]))}\n"
        f"      values={shlex.quote(' '.join(context.with_value))}\n"
        f"      paths={shlex.quote(' '.join(context.with_file))}\n"
        f"      files={'1' if context.files else ''} ;;"
        for context in contexts
    )
    names = " ".join(shlex.quote(" ".join(context.words)) for context in contexts if context.words)
    return f"""\
# bash completion for graphmill
_graphmill() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} last=${{COMP_WORDS[COMP_CWORD-1]}}
  local context= word candidate words values paths files at
  for ((at = 1; at < COMP_CWORD; at++)); do
    word=${{COMP_WORDS[at]}}
    for candidate in {names}; do
      if [[ $candidate == "${{context:+$context }}$word" ]]; then context=$candidate; break; fi
    done
  done
  case $context in
{cases}
  esac
  COMPREPLY=()
  if [[ " $paths " == *" $last "* ]]; then
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$current"))
  elif [[ " $values " == *" $last "* ]]; then
    :
  else
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ -n $files && $current != -* ]]; then
      compopt -o filenames 2>/dev/null
      COMPREPLY+=($(compgen -f -- "$current"))
    fi
  fi
}}
complete -F _graphmill graphmill"""


def _zsh(contexts: list[Context]) -> str:
    def described(entries: dict[str, str]) -> str:
        return " ".join(
            shlex.quote(f"{name}:{_plain(what)}" if what else name) for name, what in entries.items()
        )

    cases = "\n".join(
        f"    {shlex.quote(' '.join(context.words))})\n"
        f"      values=({described(context.values)})\n"
        f"      options=({described(context.options)})\n"
        f"      takes=({' '.join(context.with_value)}) paths=({' '.join(context.with_file)})\n"
        f"      files={'1' if context.files else ''} ;;"
        for context in contexts
    )
    names = " ".join(shlex.quote(" ".join(context.words)) for context in contexts if context.words)
    return f"""\
#compdef graphmill
_graphmill() {{
  local context= word candidate files last=$words[CURRENT-1]
  local -a values options takes paths
  for word in $words[2,CURRENT-1]; do
    for candidate in {names}; do
      if [[ $candidate == "${{context:+$context }}$word" ]]; then context=$candidate; break; fi
    done
  done
  case $context in
{cases}
  esac
  if (( $paths[(Ie)$last] )); then
    _files
  elif (( $takes[(Ie)$last] )); then
    return 1
  elif [[ $PREFIX == -* ]]; then
    _describe option options
  else
    (( $#values )) && _describe value values
    [[ -n $files ]] && _files
  fi
}}
compdef _graphmill graphmill"""


def _fish(contexts: list[Context]) -> str:
    lines = ["# fish completion for graphmill", "complete -c graphmill -f"]
    for context in contexts:
        inner = [other.words[-1] for other in contexts if other.words[:-1] == context.words and other.words]
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in context.words)
        unseen = f"not __fish_seen_subcommand_from {' '.join(inner)}" if inner else ""
        condition = "; and ".join(filter(None, [seen, unseen]))
        start = f"complete -c graphmill -n {shlex.quote(condition)}" if condition else "complete -c graphmill"
        if context.files:
            lines.append(f"{start} -F")
        lines += [f"{start} -a {name}{_fish_help(what)}" for name, what in context.values.items()]
        for name, what in context.options.items():
            flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            value = " -r -F" if name in context.with_file else " -x" if name in context.with_value else ""
            lines.append(f"{start} {flag}{value}{_fish_help(what)}")
    return "\n".join(lines)


def _fish_help(what: str) -> str:
    return f" -d {shlex.quote(_plain(what))}" if what else ""


def _plain(what: str) -> str:
    """Make help's text such that it stands for itself everywhere."""
    return what.replace("%%", "%").replace(":", " ").replace("'", "\u2019")
