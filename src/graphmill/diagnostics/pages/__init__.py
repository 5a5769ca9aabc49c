"""Parts of pages: what they look like, and what they do in a browser."""

from __future__ import annotations

from importlib.resources import files


def page_part(name: str) -> str:
    """Read one of the files here."""
    return (files(__name__) / name).read_text(encoding="utf-8")
