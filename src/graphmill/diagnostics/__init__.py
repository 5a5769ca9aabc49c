"""What happened in runs, and what happens now: records, pictures, progress.

`progress` shows how far runs have come while they go on, `dashboard` serves a page that does so, and
`profile` records what they do. Nothing here runs, or is loaded, unless it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphmill.diagnostics.display import progress
    from graphmill.diagnostics.live import dashboard
    from graphmill.diagnostics.recorder import profile

__all__ = ["dashboard", "profile", "progress"]


def __getattr__(name: str) -> Any:
    # The engine loads this package, and needs none of them.
    if name == "profile":
        from graphmill.diagnostics.recorder import profile  # noqa: PLC0415 - see above

        return profile
    if name == "progress":
        from graphmill.diagnostics.display import progress  # noqa: PLC0415 - as above

        return progress
    if name == "dashboard":
        from graphmill.diagnostics.live import dashboard  # noqa: PLC0415 - as above

        return dashboard
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
