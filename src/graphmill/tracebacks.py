"""Exceptions on their way to another process, with their tracebacks and with those that led to them.

An exception keeps its type, arguments, attributes and notes, its cause and context, the members of its
group, and a traceback whose frames a debugger can walk (without their variables). Each exception of a
chain goes by itself, so one that cannot be sent does not take the others along: a `RemoteError` stands in
for it. Nothing is registered anywhere: how other code pickles exceptions stays as it is.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from traceback import format_tb
from types import SimpleNamespace, TracebackType
from typing import Any

import cloudpickle
import tblib

from graphmill.errors import RemoteError

__all__ = ["decode_exception", "encode_exception"]

#: Most exceptions of one chain or group that travel; what lies further away is dropped.
MAX_EXCEPTIONS = 100
#: Most frames of one traceback that travel: of longer ones, those at both ends.
MAX_FRAMES = 1000

_PROTOCOL = 5
_SPEECHLESS = "<its text cannot be shown>"
#: Set in the flags of classes that were not written in C as part of Python itself.
_HEAP_TYPE = 1 << 9
#: What these exceptions know beyond arguments and `__dict__`; Python 3.11 does not pickle it.
_EXTRAS: tuple[tuple[type[BaseException], str], ...] = ((NameError, "name"), (AttributeError, "name"))


@dataclass(frozen=True, slots=True)
class _Frame:
    """One line of a traceback."""

    filename: str
    function: str
    line: int
    #: The globals that tell where the code comes from.
    origin: dict[str, Any]


@dataclass(slots=True)
class _Record:
    """One exception, apart from those that it is linked to."""

    #: Name of its type, with the module.
    type_name: str
    #: What it said.
    message: str
    frames: list[_Frame]
    #: What is pinned to it with `add_note`.
    notes: list[str] | None
    suppress_context: bool
    #: The exception, pickled; of a group, its type, message and attributes; None if it cannot be.
    content: bytes | None = None
    #: Numbers of linked records.
    cause: int | None = None
    context: int | None = None
    #: For a group: those of its members.
    members: list[int] | None = None


def encode_exception(exc: BaseException, tb: TracebackType | None = None) -> bytes:
    """Make bytes of an exception.

    Parameters
    ----------
    exc
        Any exception; it is unpickled once here, to see whether it can be.
    tb
        The traceback to send instead of the one that it has, without the sender's own frames.

    Returns
    -------
    bytes
        For `decode_exception`. This does not fail, whatever the exception holds.
    """
    found = _linked(exc)
    numbers = {id(each): number for number, each in enumerate(found)}
    records = [_record(each, numbers) for each in found]
    if tb is not None:
        records[0].frames = _frames(tb)
    return pickle.dumps(records, _PROTOCOL)


def decode_exception(payload: bytes) -> BaseException:
    """Make an exception of the bytes from `encode_exception`.

    Returns
    -------
    BaseException
        An exception of the same type; or a `RemoteError`, where it could not be sent or cannot be built
        in this process.
    """
    return _Rebuilding(pickle.loads(payload)).run()  # noqa: S301 - written by `encode_exception`


# ---- taking apart


def _linked(exc: BaseException) -> list[BaseException]:
    """List an exception, and all that are linked to it; those nearest first."""
    found = [exc]
    seen = {id(exc)}
    for each in found:  # it grows
        for other in (*_members(each), each.__cause__, each.__context__):
            if other is not None and id(other) not in seen and len(found) < MAX_EXCEPTIONS:
                seen.add(id(other))
                found.append(other)
    return found


def _members(exc: BaseException) -> tuple[BaseException, ...]:
    return exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()


def _record(exc: BaseException, numbers: dict[int, int]) -> _Record:
    notes = getattr(exc, "__notes__", None)
    record = _Record(
        _type_name(type(exc)),
        _text(exc),
        _frames(exc.__traceback__),
        [_text(note) for note in notes] if isinstance(notes, list) else None,
        exc.__suppress_context__,
        cause=numbers.get(id(exc.__cause__)),
        context=numbers.get(id(exc.__context__)),
    )
    if isinstance(exc, BaseExceptionGroup):
        record.members = [numbers[id(each)] for each in exc.exceptions if id(each) in numbers]
    record.content = _content(exc)
    return record


def _content(exc: BaseException) -> bytes | None:
    """Pickle an exception if that can be undone."""
    try:
        if isinstance(exc, BaseExceptionGroup):
            content = _pickle((type(exc), exc.message, _attributes(exc)))
            pickle.loads(content)  # noqa: S301 - our own bytes
            return content
        said = _text(exc)
        content = _pickle(exc)
        copy = pickle.loads(content)  # noqa: S301 - our own bytes
        fine = isinstance(copy, BaseException) and (_text(copy) != _SPEECHLESS or said == _SPEECHLESS)
    except Exception:  # noqa: BLE001 - an exception may hold anything, and fail in any way
        return None
    return content if fine else None


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _text(obj: Any) -> str:
    try:
        return str(obj)
    except Exception:  # noqa: BLE001 - a class may do anything in __str__
        return _SPEECHLESS


def _frames(tb: TracebackType | None) -> list[_Frame]:
    frames = []
    while tb is not None:
        code, names = tb.tb_frame.f_code, tb.tb_frame.f_globals
        origin = {name: names[name] for name in ("__name__", "__file__") if isinstance(names.get(name), str)}
        frames.append(_Frame(code.co_filename, code.co_name, tb.tb_lineno, origin))
        tb = tb.tb_next
    if len(frames) > MAX_FRAMES:
        half = MAX_FRAMES // 2
        frames = frames[:half] + frames[-half:]
    return frames


def _pickle(obj: Any) -> bytes:
    stream = io.BytesIO()
    _Pickler(stream, _PROTOCOL).dump(obj)
    return stream.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles exceptions so that they are rebuilt without their own `__init__`."""

    def reducer_override(self, obj: Any) -> Any:
        """Take an exception apart, and functions and classes as cloudpickle does."""
        if isinstance(obj, BaseException) and not isinstance(obj, BaseExceptionGroup):
            return _reduce(obj)
        return super().reducer_override(obj)


def _reduce(exc: BaseException) -> Any:
    """Take an exception apart, unless its class says how.

    Many classes have an `__init__` with other parameters than `args` has items; what pickle would do by
    default fails when it is undone.
    """
    cls = type(exc)
    if _is_own(cls, "__reduce__") or _is_own(cls, "__reduce_ex__"):
        return NotImplemented
    base = next(each for each in cls.__mro__ if not each.__flags__ & _HEAP_TYPE)
    reduced: Any = exc.__reduce__()
    _, args, *rest = reduced
    attributes = _attributes(exc)
    if rest and isinstance(rest[0], dict):  # of some builtin classes, more than __dict__
        attributes = {**rest[0], **attributes}
    attributes.pop("__notes__", None)
    return _revive, (cls, base, args), attributes, None, None, _set_attributes


def _is_own(cls: type, method: str) -> bool:
    """Tell whether a class of somebody's own, not of Python itself, defines a method."""
    owner = next(each for each in cls.__mro__ if method in vars(each))
    return bool(owner.__flags__ & _HEAP_TYPE)


def _attributes(exc: BaseException) -> dict[str, Any]:
    attributes = {name: value for name, value in vars(exc).items() if name != "__notes__"}
    for cls, name in _EXTRAS:
        if isinstance(exc, cls) and getattr(exc, name) is not None:
            attributes[name] = getattr(exc, name)
    attributes.update((name, getattr(exc, name)) for name in _slots(type(exc)) if hasattr(exc, name))
    return attributes


def _slots(cls: type) -> Iterator[str]:
    for each in cls.__mro__:
        names = vars(each).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in {"__dict__", "__weakref__"}:
                private = name.startswith("__") and not name.endswith("__")
                yield f"_{each.__name__.lstrip('_')}{name}" if private else name


def _revive(cls: type[BaseException], base: Any, args: tuple[Any, ...]) -> BaseException:
    """Make an exception without the `__new__` and `__init__` of its own class."""
    exc: BaseException = base.__new__(cls, *args)
    base.__init__(exc, *args)
    return exc


def _set_attributes(exc: BaseException, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        object.__setattr__(exc, name, value)  # a frozen dataclass has its own


# ---- putting together


@dataclass(slots=True)
class _Rebuilding:
    """One call of `decode_exception`."""

    records: list[_Record]
    #: Rebuilt exceptions by number.
    made: dict[int, BaseException] = field(default_factory=dict)

    def run(self) -> BaseException:
        """Rebuild all exceptions, and link them; members of groups before their groups."""
        for number in range(len(self.records)):
            self._make(number)
        for number, record in enumerate(self.records):
            exc = self.made[number]
            links = {
                "__cause__": self._linked(record.cause),
                "__context__": self._linked(record.context),
                "__suppress_context__": record.suppress_context,  # after the cause, which sets it
            }
            _set_attributes(exc, links if record.notes is None else {**links, "__notes__": record.notes})
        return self.made[0]

    def _linked(self, number: int | None) -> BaseException | None:
        return None if number is None else self.made[number]

    def _make(self, number: int) -> BaseException:
        if number in self.made:
            return self.made[number]
        record = self.records[number]
        members = [self._make(member) for member in record.members or ()]
        tb = _traceback(record.frames)
        exc = _loads(record, members)
        if exc is None:  # not what counts as false: an exception may
            exc = _stand_in(record, tb)
        self.made[number] = BaseException.with_traceback(exc, tb)
        return exc


def _loads(record: _Record, members: list[BaseException]) -> BaseException | None:
    """Unpickle an exception if it can be."""
    if record.content is None:
        return None
    try:
        content = pickle.loads(record.content)  # noqa: S301 - written by `encode_exception`
        if record.members is not None:
            content = _group(content, members)
    except Exception:  # noqa: BLE001 - its module may be missing here, its class may do anything
        return None
    return content if isinstance(content, BaseException) else None


def _group(content: Any, members: list[BaseException]) -> BaseException:
    cls, message, attributes = content
    group: BaseExceptionGroup[BaseException] = BaseExceptionGroup.__new__(cls, message, members)
    BaseExceptionGroup.__init__(group, message, members)
    _set_attributes(group, attributes)
    return group


def _stand_in(record: _Record, tb: TracebackType | None) -> RemoteError:
    lines = ["Traceback (most recent call last):\n", *format_tb(tb)] if tb else []
    story = "".join([*lines, f"{record.type_name}: {record.message}"])
    return RemoteError(record.type_name, record.message, story)


def _traceback(frames: list[_Frame]) -> TracebackType | None:
    """Make a traceback whose frames stand where the original's stood."""
    link: Any = None
    for frame in reversed(frames):
        code = SimpleNamespace(co_filename=frame.filename, co_name=frame.function)
        link = SimpleNamespace(
            tb_frame=SimpleNamespace(f_globals=frame.origin, f_code=code, f_lineno=frame.line),
            tb_lineno=frame.line,
            tb_next=link,
        )
    if link is None:
        return None
    rebuilt = []
    tb: TracebackType | None = tblib.Traceback(link).as_traceback()
    while tb is not None:
        rebuilt.append(tb)
        tb = tb.tb_next
    # The code of these frames is a stand-in; with no place in it, nobody marks columns of the real line.
    for each in reversed(rebuilt):
        tb = TracebackType(tb, each.tb_frame, -1, each.tb_lineno)
    return tb
