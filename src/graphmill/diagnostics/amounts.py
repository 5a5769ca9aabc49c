"""Bytes, seconds and counts as people read them, and the colours of kinds.

Pure: text in, text out.
"""

from __future__ import annotations

from collections.abc import Iterable

#: Colours that can be told apart, on light and on dark ground.
COLOURS = (
    "#4e86c6", "#f0923b", "#4fa867", "#d9608f", "#8f79d6",
    "#2fb3b3", "#c9a227", "#e0605a", "#7aa33c", "#b08968",
)  # fmt: skip
#: That of kinds for which none is left.
OTHER = "#8b93a1"

_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_MINUTE = 60
_HOUR = 3600
#: From here on, tenths say nothing.
_MANY = 10


def of_bytes(nbytes: float) -> str:
    """Write an amount of memory.

    Examples
    --------
    >>> of_bytes(0), of_bytes(999), of_bytes(1_250_000), of_bytes(812_000_000), of_bytes(4.2e9)
    ('0 B', '999 B', '1.2 MB', '812 MB', '4.2 GB')
    """
    for size, unit in _BYTES:
        # What would be rounded up to 1000 is one of the next unit.
        if abs(nbytes) >= size * 0.9995:
            amount = nbytes / size
            return f"{amount:.1f} {unit}" if abs(amount) < _MANY else f"{amount:.0f} {unit}"
    return f"{nbytes:.0f} B"


def of_seconds(seconds: float) -> str:
    """Write how long something takes.

    Examples
    --------
    >>> of_seconds(0.0000123), of_seconds(0.0042), of_seconds(1.234), of_seconds(61), of_seconds(7322)
    ('12 µs', '4.2 ms', '1.2 s', '1:01', '2:02:02')
    """
    if seconds >= _MINUTE - 0.5:
        whole = round(seconds)
        minutes, rest = divmod(whole, _MINUTE)
        if whole < _HOUR:
            return f"{minutes}:{rest:02}"
        return f"{minutes // _MINUTE}:{minutes % _MINUTE:02}:{rest:02}"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size * 0.9995:
            amount = seconds / size
            return f"{amount:.1f} {unit}" if amount < _MANY else f"{amount:.0f} {unit}"
    return f"{seconds * 1e6:.0f} µs" if seconds else "0 s"


def of_count(count: int, noun: str) -> str:
    """Write how many there are of something.

    Examples
    --------
    >>> of_count(1, "task"), of_count(43364, "task")
    ('1 task', '43,364 tasks')
    """
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def of_rate(rate: float) -> str:
    """Write how many there are in a second.

    Examples
    --------
    >>> of_rate(0.25), of_rate(3.14), of_rate(12345.6)
    ('0.25/s', '3.1/s', '12,346/s')
    """
    if rate >= _MANY:
        return f"{rate:,.0f}/s"
    return f"{rate:.1f}/s" if rate >= 1 else f"{rate:.2f}/s"


def colours(kinds: Iterable[str]) -> dict[str, str]:
    """Give each kind a colour, the first ones of their own."""
    return {kind: COLOURS[at] if at < len(COLOURS) else OTHER for at, kind in enumerate(kinds)}
