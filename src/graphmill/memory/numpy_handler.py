"""Lets NumPy allocate large arrays from a heap (NEP 49).

NumPy takes a record of four C functions that allocate and free array data. Each array remembers the record
it was made under and is freed by the same, so records may be exchanged at any time. The functions are in
`_handler.c`, which says why they cannot be Python's. It is compiled when graphmill is built; where there was
no compiler, there is no handler, and results are copied.

C asks Python for large memory only. What is freed it notes, and the heap takes it from there. The capsule
that NumPy knows the record by is held by all arrays made under it, and holds all that C uses: the heap too,
for as long as it may be needed.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from graphmill.errors import AllowanceSpent, ArenaFull
from graphmill.memory.heap import Heap

logger = logging.getLogger(__name__)

#: Entries of the table of NumPy's C functions, the same since NumPy 1.22.
SET_HANDLER, GET_HANDLER = 304, 305

#: Where that table is found, in NumPy 2 and before.
MODULES = ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath")

CAPSULE = b"mem_handler"
VERSION = 1

#: Arrays below this size are not worth a range of whole pages, in bytes. Most are gone after a moment, and
#: to copy the others takes less than a range costs each: a histogram took 0.88 of what it did with 64 kB.
THRESHOLD = 256 * 1024

#: The compiled functions.
LIBRARY = Path(__file__).with_name("_handler.so")

# Addresses are plain integers here: those cost less to convert than c_void_p, and NULL is 0, not None.
ADDRESS = ctypes.c_size_t

#: An address that stands for memory that is refused, as C knows it.
REFUSED: Final = 1
#: No array is larger.
NEVER: Final = ctypes.c_size_t(-1).value

#: How C asks for memory: where it is now, its new size, whether it has to be zeros, where the answer goes.
ANSWER = ctypes.CFUNCTYPE(None, ADDRESS, ctypes.c_size_t, ctypes.c_size_t, ADDRESS)


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


class State(ctypes.Structure):
    """What the functions in `_handler.c` know; see there."""

    _fields_ = (
        ("context", ADDRESS),
        ("malloc", ADDRESS),
        ("calloc", ADDRESS),
        ("realloc", ADDRESS),
        ("free", ADDRESS),
        ("start", ADDRESS * 3),
        ("length", ctypes.c_size_t * 3),
        ("threshold", ctypes.c_size_t),
        ("answer", ADDRESS),
        ("freed", ADDRESS),
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


@functools.cache
def load_library(path: Path) -> ctypes.PyDLL | None:
    """Load the compiled functions; None if there are none, or none that fit. Says so once, if they do not."""
    if not path.exists():
        return None
    try:
        library = ctypes.PyDLL(str(path))
        size = ctypes.c_size_t.in_dll(library, "graphmill_state_size").value
    except (OSError, ValueError) as error:
        logger.warning("results are copied, since %s cannot be used: %s", path.name, error)
        return None
    if size != ctypes.sizeof(State):
        logger.warning("results are copied, since %s is of another version: install again", path.name)
        return None
    library.graphmill_take.restype = ADDRESS
    library.graphmill_take.argtypes = [ctypes.c_void_p]
    return library


class LargeMemory:
    """What C asks Python for: memory for large arrays.

    Parameters
    ----------
    heap : Heap
        Where it comes from.
    default : Record
        Where it comes from if the heap has none, for arrays that grow.
    """

    __slots__ = ("_context", "_heap", "_is_closed", "_malloc", "failure")

    def __init__(self, heap: Heap, default: Record) -> None:
        #: None once nothing of it is in use, nor will be.
        self._heap: Heap | None = heap
        self._malloc: Callable[[int, int], int] = ctypes.PYFUNCTYPE(ADDRESS, ADDRESS, ctypes.c_size_t)(
            default.malloc
        )
        self._context: int = default.context
        #: What went wrong first, where nothing can be raised.
        self.failure: BaseException | None = None
        self._is_closed = False

    def close(self) -> bool:
        """Take nothing more from the heap; let go of it, and answer True, if nothing of it is in use."""
        self._is_closed = True
        if self._heap is not None and not self._heap.usage().live:
            self._heap = None
        return self._heap is None

    def answer(self, old: int, nbytes: int, zeroed: int, found: int) -> None:
        """Answer C; nothing may be raised here.

        Parameters
        ----------
        old : int
            The address of the heap's memory that is to be resized; 0 if none is.
        nbytes : int
            How much is needed.
        zeroed : int
            Whether new memory has to be all zeros.
        found : int
            The address of a variable for the address of the memory; it holds 0, for none. `REFUSED` means
            that there shall be none from elsewhere either.
        """
        try:
            heap = self._heap
            if heap is not None:
                address = self._resize(heap, old, nbytes) if old else heap.allocate(nbytes, bool(zeroed))
                ADDRESS.from_address(found).value = address
        except ArenaFull:
            pass  # C takes its memory from elsewhere
        except AllowanceSpent:
            ADDRESS.from_address(found).value = REFUSED
        except BaseException as error:  # noqa: BLE001  # C calls this: it is noted, see take_failure
            self.failure = self.failure or error

    def _resize(self, heap: Heap, old: int, nbytes: int) -> int:
        """Resize memory of the heap's; where the heap has no room, or is of the past, it moves out."""
        try:
            moved = 0 if self._is_closed else heap.resize(old, nbytes)
        except ArenaFull:
            moved = 0
        if not moved:
            moved = self._malloc(self._context, nbytes)
            if moved:
                ctypes.memmove(moved, old, min(nbytes, heap.live[old].nbytes))
                heap.release(old)
        return moved


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
    library : PyDLL
        What `load_library` found.

    Notes
    -----
    NumPy keeps the handler in a context variable: threads started while it is on do not have it. Arrays may
    be freed on any thread.
    """

    __slots__ = ("_capsule", "_interface", "_large", "_previous", "_state")

    def __init__(self, heap: Heap, threshold: int, interface: Interface, library: ctypes.PyDLL) -> None:
        self._interface = interface
        self._large = LargeMemory(heap, interface.default)
        #: The handler before, while this one is on.
        self._previous: object | None = None
        answer = ANSWER(self._large.answer)
        self._state = make_state(heap.places, threshold, interface.default, answer)
        heap.add_source(functools.partial(library.graphmill_take, ctypes.byref(self._state)))
        #: What NumPy knows it by; None once it is closed.
        self._capsule: object | None = make_capsule(library, self._state, (answer, interface))
        atexit.register(self._exit)

    @classmethod
    def create(cls, heap: Heap, threshold: int = THRESHOLD) -> Self | None:
        """Make a handler, switched off; None if NumPy does not take one, or there is no compiled part."""
        interface, library = find_interface(), load_library(LIBRARY)
        if interface is None or library is None:
            return None
        return cls(heap, threshold, interface, library)

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
        if self._capsule is None:
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

        A lack of memory is no failure: it comes from elsewhere, or NumPy raises MemoryError. This is an
        interrupt or a bug; the heap can no longer be relied on then.
        """
        failure, self._large.failure = self._large.failure, None
        return failure

    def close(self) -> None:
        """Switch off for good. Arrays live on, and are freed as ever. May be called twice.

        The heap is let go of now, or with the last array if large ones live on. Other threads must not make
        arrays under it any more.
        """
        self.switch_off()
        self._state.threshold = NEVER
        if self._large.close():
            self._state.length[:] = 0, 0, 0  # other memory may lie there one day
        self._capsule = None
        atexit.unregister(self._exit)

    def __enter__(self) -> Self:
        self.switch_on()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.switch_off()

    def _exit(self) -> None:
        """Keep C from calling Python, which is about to end; what C uses goes with the process."""
        self.switch_off()
        self._state.answer = 0
        prototype = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
        prototype(("PyCapsule_SetDestructor", ctypes.pythonapi))(self._capsule, None)


def make_state(places: list[tuple[int, int]], threshold: int, default: Record, answer: Any) -> State:
    """Fill the record that the C functions work from."""
    state = State(default.context, default.malloc, default.calloc, default.realloc, default.free)
    for number, (start, length) in enumerate(places):
        state.start[number], state.length[number] = start, length
    state.threshold = threshold
    state.answer = address_of(answer)
    return state


def make_capsule(library: ctypes.PyDLL, state: State, others: tuple[object, ...]) -> object:
    """Make what NumPy knows the functions by. Its end is the end of all that they use, if nobody else does.

    Parameters
    ----------
    library : PyDLL
        The functions.
    state : State
        What they work from.
    others : tuple
        What the state points to.
    """
    functions = [
        address_of(getattr(library, f"graphmill_{name}")) for name in ("malloc", "calloc", "realloc", "free")
    ]
    record = Record(b"graphmill", VERSION, ctypes.addressof(state), *functions)
    owner = (CAPSULE, record, state, others)
    pointer = ctypes.c_void_p
    new = ctypes.PYFUNCTYPE(ctypes.py_object, pointer, ctypes.c_char_p, pointer)
    made: object = new(("PyCapsule_New", ctypes.pythonapi))(
        ctypes.addressof(record), CAPSULE, address_of(library.graphmill_forget)
    )
    set_context = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.py_object)
    set_context(("PyCapsule_SetContext", ctypes.pythonapi))(made, owner)
    # From here on the capsule has a reference; `graphmill_forget` gives it back.
    ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", ctypes.pythonapi))(owner)
    return made


def address_of(function: Any) -> int:
    """Tell where a C function starts."""
    # Not by ctypes.cast: that makes a cycle, and what the function refers to would live until a collection.
    return ADDRESS.from_address(ctypes.addressof(function)).value
