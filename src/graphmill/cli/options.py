"""Options of several commands that are settings."""

from __future__ import annotations

import argparse

from graphmill import config
from graphmill.config.settings import SETTINGS, check, read_text

#: Options, and the settings that they are.
_SETTINGS = {"workers": "num_workers", "memory_limit": "memory_limit", "spill_dir": "spill_folder"}


def take_settings(arguments: argparse.Namespace) -> None:
    """Have the options hold, and see that all settings can be used, before anything is begun."""
    for option, name in _SETTINGS.items():
        text = getattr(arguments, option)
        if text is not None:
            value = read_text(name, text)
            check(name, value, f"--{option.replace('_', '-')}")
            config.options[name] = value
    for name in SETTINGS:
        config.get(name)


def chosen(arguments: argparse.Namespace) -> list[str]:
    """List the options for settings that were given."""
    return [f"--{name.replace('_', '-')}" for name in _SETTINGS if getattr(arguments, name) is not None]
