"""Lets NumPy allocate large arrays from a heap (NEP 49), without compiled code of our own.

NumPy takes a record of four C functions that allocate and free array data. Each array remembers the record
it was made under and is freed by the same, so records may be exchanged at any time. Here the functions are
Python's own methods, called through ctypes. Two things follow from that:

- They cost more than the small arrays that they would be called for. What is below the threshold comes
  from NumPy's default functions, and once freed is kept by its exact size for the next of that size: taking
  it from a list is cheaper than calling into C again.
- Nothing may ever raise out of them, and they must outlive every array made under them. So failures are
  noted and reported as "no memory", and the few hundred bytes that C points to are never freed.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from graphmill.errors import ArenaFull
from graphmill.memory.heap import Heap

#: Entries of the table of NumPy's C functions, the same since NumPy 1.22.
SET_HANDLER, GET_HANDLER = 304, 305

#: Where that table is found, in NumPy 2 and before.
MODULES = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")

CAPSULE = b"mem_handler"
VERSION = 1

#: Arrays below this size are not worth a range of whole pages, in bytes.
THRESHOLD = 64 * 1024

#: How much memory of freed small arrays is kept, in bytes.
KEPT = 4 << 20

# Addresses are plain integers here: those cost less to convert than c_void_p, and NULL is 0, not None.
ADDRESS = ctypes.c_size_t
MALLOC = (ADDRESS, ADDRESS, ctypes.c_size_t)
CALLOC = (ADDRESS, ADDRESS, ctypes.c_size_t, ctypes.c_size_t)
REALLOC = (ADDRESS, ADDRESS, ADDRESS, ctypes.c_size_t)
FREE = (None, ADDRESS, ADDRESS, ctypes.c_size_t)


class Record(ctypes.Structure):
    """NumPy's PyDataMem_Handler."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ADDRESS),
        ("malloc", ADDRESS),
        ("calloc", ADDRESS),
        ("realloc", ADDRESS),
        ("free", ADDRESS),
    )


@dataclass(frozen=True, slots=True)
class Interface:
    """What NumPy offers, and what it uses by default."""

    #: Makes another handler the one for new arrays; returns the one before.
    exchange: Callable[[object], object]
    #: The handler that was in use when this was read; it keeps `default` alive.
    capsule: object
    #: Its record.
    default: Record


def find_interface() -> Interface | None:
    """Find NumPy's functions for exchanging handlers; None if they are not where they should be."""
    if sys.implementation.name != "cpython":
        return None
    prototype = ctypes.PYFUNCTYPE(ADDRESS, ctypes.py_object, ctypes.c_char_p)
    pointer = prototype(("PyCapsule_GetPointer", ctypes.pythonapi))
    try:
        table = ctypes.cast(pointer(find_table(), None), ctypes.POINTER(ADDRESS))
        capsule = ctypes.PYFUNCTYPE(ctypes.py_object)(table[GET_HANDLER])()
        default = Record.from_address(pointer(capsule, CAPSULE))
    except (ImportError, AttributeError, ValueError):
        return None
    if default.version != VERSION:
        return None
    exchange = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])
    return Interface(exchange, capsule, default)


def find_table() -> Any:
    """Get the capsule with NumPy's table of C functions."""
    try:
        module = importlib.import_module(MODULES[0])
    except ImportError:
        module = importlib.import_module(MODULES[1])
    return module._ARRAY_API  # noqa: SLF001  # the name that every extension module imports


class NumpyHandler:
    """Makes NumPy allocate large arrays from a heap, while it is switched on.

    As a context manager it is on inside the block.

    Parameters
    ----------
    heap : Heap
        Where they come from; its arenas have to stay open until the handler is closed.
    threshold : int
        Arrays of this size or more, in bytes, are large.
    interface : Interface
        What `find_interface` found.

    Notes
    -----
    NumPy keeps the handler in a context variable: threads started while it is on do not have it. Arrays may
    be freed on any thread.
    """

    __slots__ = (
        "_capsule",
        "_closed",
        "_context",
        "_default_calloc",
        "_default_free",
        "_default_malloc",
        "_default_realloc",
        "_exiting",
        "_failure",
        "_heap",
        "_interface",
        "_kept",
        "_kept_bytes",
        "_kept_limit",
        "_live",
        "_previous",
        "_threshold",
    )

    def __init__(self, heap: Heap, threshold: int, interface: Interface) -> None:
        self._heap: Heap | None = heap
        self._live = heap.live
        self._threshold = threshold
        self._interface = interface
        default = interface.default
        self._context: int = default.context
        self._default_malloc: Callable[[int, int], int] = ctypes.PYFUNCTYPE(*MALLOC)(default.malloc)
        self._default_calloc: Callable[[int, int, int], int] = ctypes.PYFUNCTYPE(*CALLOC)(default.calloc)
        self._default_realloc: Callable[[int, int, int], int] = ctypes.PYFUNCTYPE(*REALLOC)(default.realloc)
        self._default_free = ctypes.PYFUNCTYPE(*FREE)(default.free)
        #: {size: addresses of freed small arrays of that size}
        self._kept: dict[int, list[int]] = {}
        self._kept_bytes = 0
        self._kept_limit = KEPT
        #: The handler before, while this one is on.
        self._previous: object | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._exiting = False
        self._capsule = self._make_capsule()
        atexit.register(self._exit)

    @classmethod
    def create(cls, heap: Heap, threshold: int = THRESHOLD) -> Self | None:
        """Make a handler, switched off; None if this NumPy does not let itself be given one."""
        interface = find_interface()
        return None if interface is None else cls(heap, threshold, interface)

    @property
    def is_on(self) -> bool:
        """Whether it is switched on."""
        return self._previous is not None

    def switch_on(self) -> None:
        """Let large arrays come from the heap, in this thread. May be called twice.

        Raises
        ------
        ValueError
            The handler is closed.
        """
        if self._closed:
            raise ValueError("the handler is closed")
        if self._previous is None:
            self._previous = self._interface.exchange(self._capsule)

    def switch_off(self) -> None:
        """Let arrays come from where they came from before. May be called twice."""
        if self._previous is not None:
            self._interface.exchange(self._previous)
            self._previous = None

    def take_failure(self) -> BaseException | None:
        """Tell, once, what went wrong inside of NumPy's calls, where nothing can be raised.

        A lack of memory is no failure: NumPy raises MemoryError for that. This is an interrupt or a bug;
        the heap can no longer be relied on then.
        """
        failure, self._failure = self._failure, None
        return failure

    def close(self) -> None:
        """Switch off for good. Arrays live on, and are freed as ever. May be called twice."""
        self.switch_off()
        self._closed = True
        self._kept_limit = -1
        self._drop_kept()
        self._let_go()
        atexit.unregister(self._exit)

    def __enter__(self) -> Self:
        self.switch_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.switch_off()

    # ---- called by NumPy

    def _malloc(self, context: int, nbytes: int) -> int:
        try:
            if nbytes < self._threshold:
                return self._take_kept(nbytes) or self._default_malloc(context, nbytes)
            return self._large(nbytes, zeroed=False) or self._default_malloc(context, nbytes)
        except BaseException as error:  # noqa: BLE001  # C calls this: it is noted, see take_failure
            return self._failed(error)

    def _calloc(self, context: int, count: int, size: int) -> int:
        try:
            nbytes = count * size
            if nbytes < self._threshold:
                address = self._take_kept(nbytes)
                if not address:
                    return self._default_calloc(context, count, size)
                ctypes.memset(address, 0, nbytes)
                return address
            return self._large(nbytes, zeroed=True) or self._default_calloc(context, count, size)
        except BaseException as error:  # noqa: BLE001  # C calls this: it is noted, see take_failure
            return self._failed(error)

    def _realloc(self, context: int, address: int, nbytes: int) -> int:
        try:
            if address in self._live:
                return self._resize(context, address, nbytes)
            # Nobody knows how long the old memory is, so it stays with whom it came from.
            return self._default_realloc(context, address, nbytes)
        except BaseException as error:  # noqa: BLE001  # C calls this: it is noted, see take_failure
            return self._failed(error)

    def _free(self, context: int, address: int, nbytes: int) -> None:
        try:
            if address in self._live:
                self._release(address)
            elif nbytes < self._threshold:
                kept = self._kept.get(nbytes)
                if kept is None:
                    self._kept[nbytes] = [address]
                else:
                    kept.append(address)
                self._kept_bytes += nbytes
                if self._kept_bytes > self._kept_limit:
                    self._drop_kept()
            else:
                self._default_free(context, address, nbytes)
        except BaseException as error:  # noqa: BLE001  # C calls this: it is noted, see take_failure
            self._failed(error)

    # ---- their parts

    def _take_kept(self, nbytes: int) -> int:
        """Take the memory of a freed small array; 0 if none of that size is kept."""
        kept = self._kept.get(nbytes)
        if not kept:
            return 0
        try:
            address = kept.pop()
        except IndexError:
            return 0  # another thread was quicker
        self._kept_bytes -= nbytes
        return address

    def _large(self, nbytes: int, zeroed: bool) -> int:
        """Allocate from the heap; 0 if it has no room, is busy, or is gone."""
        if self._heap is None:
            return 0
        try:
            return self._heap.allocate(nbytes, zeroed)
        except ArenaFull:
            return 0

    def _resize(self, context: int, address: int, nbytes: int) -> int:
        """Resize memory of the heap's; where the heap has no room, or is of the past, it moves out."""
        assert self._heap is not None
        try:
            moved = 0 if self._closed else self._heap.resize(address, nbytes)
        except ArenaFull:
            moved = 0
        if not moved:
            moved = self._default_malloc(context, nbytes)
            if moved:
                ctypes.memmove(moved, address, min(nbytes, self._live[address].nbytes))
                self._release(address)
        return moved

    def _release(self, address: int) -> None:
        if self._exiting:
            return  # modules may be gone already, and the memory goes with the process
        assert self._heap is not None
        self._heap.release(address)
        if self._closed:
            self._let_go()

    def _let_go(self) -> None:
        """Forget the heap once nothing of it is live: this object is never freed, the heap should be."""
        if not self._live:
            self._heap, self._live = None, {}

    def _drop_kept(self) -> None:
        """Free all small arrays that were kept: sizes of long ago must not crowd out those of now."""
        kept, self._kept, self._kept_bytes = self._kept, {}, 0
        for nbytes, addresses in kept.items():
            while addresses:  # popped one by one: another thread may be at the same list
                self._default_free(self._context, addresses.pop(), nbytes)

    def _failed(self, error: BaseException) -> int:
        self._failure = self._failure or error
        return 0

    def _exit(self) -> None:
        self.switch_off()
        self._exiting = True

    def _make_capsule(self) -> object:
        """Make the record that NumPy reads, and all that it points to, for good."""
        functions = (
            ctypes.CFUNCTYPE(*MALLOC)(self._malloc),
            ctypes.CFUNCTYPE(*CALLOC)(self._calloc),
            ctypes.CFUNCTYPE(*REALLOC)(self._realloc),
            ctypes.CFUNCTYPE(*FREE)(self._free),
        )
        addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in functions]
        record = Record(b"graphmill", VERSION, self._context, *addresses)
        keep = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))
        keep((functions, record))
        prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        made: object = prototype(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(record), CAPSULE, None)
        return made
