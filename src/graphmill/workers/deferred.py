"""Libraries that others import without need: they are loaded when they are first used.

`dask.array` imports xarray wherever that is installed, and with it pandas and pyarrow, to know their objects
if it meets them: 45 MB and half a second, for tasks that mostly never see such an object.

While `deferring` lasts, an import of such a library gives a stand-in. Afterwards whoever imports it gets the
library itself, and so does whoever looks at an attribute of a stand-in.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, Final

#: Those that are deferred where nobody has use for them.
DEFERRABLE: Final = ("xarray", "pandas", "pyarrow")
#: What imports them only to know their objects, and what has nothing to do with them: is not looked through.
_WITHOUT_NEED: Final = frozenset(
    {*DEFERRABLE, *sys.stdlib_module_names, "dask", "distributed", "graphmill", "numpy", "scipy", "zarr"}
) - {"__main__"}
#: What works on their objects in any case.
_IN_NEED: Final = ("dask.dataframe", "dask_expr")


def without_need(loaded: Mapping[str, ModuleType]) -> tuple[str, ...]:
    """Find the libraries that are loaded, and that nobody seems to have use for.

    Parameters
    ----------
    loaded
        Modules by name, as in `sys.modules`.

    Returns
    -------
    tuple of str
        All of them that are loaded, or none: they load each other.
    """
    found = tuple(name for name in DEFERRABLE if name in loaded)
    if not found or any(name in loaded for name in _IN_NEED):
        return ()
    for name, module in list(loaded.items()):
        if name.partition(".")[0] in _WITHOUT_NEED or not isinstance(module, ModuleType):
            continue
        if any(_origin(value) in DEFERRABLE for value in list(vars(module).values())):
            return ()
    return found


def _origin(value: Any) -> str:
    """Tell which library a module, class or function is part of, or the class of anything else."""
    kind = type(value)  # not `isinstance`, which runs code of objects that stand for others
    if issubclass(kind, ModuleType):
        name = value.__name__
    elif issubclass(kind, type | FunctionType):
        name = value.__module__
    else:
        name = kind.__module__
    return name.partition(".")[0] if isinstance(name, str) else ""


class _StandIn(ModuleType):
    """Loads the library when an attribute is wanted that not every module has."""

    def __getattr__(self, name: str) -> Any:
        _forget(self)
        return getattr(importlib.import_module(self.__name__), name)


class _Finder(MetaPathFinder, Loader):
    """Finds stand-ins of libraries."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._loading: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        # Whoever is not there must not seem to be; and what was wanted once is loaded as usual.
        if fullname not in self._names or fullname in self._loading:
            return None
        if PathFinder.find_spec(fullname, path, target) is None:
            return None
        self._loading.add(fullname)
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> None:
        pass  # an ordinary one: the import system looks at its attributes first

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _StandIn


@contextmanager
def deferring(names: Iterable[str]) -> Iterator[None]:
    """Have imports of libraries give stand-ins, which load them when they are used.

    Parameters
    ----------
    names
        The libraries: top-level names.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for module in list(sys.modules.values()):
            if type(module) is _StandIn:
                _forget(module)


def _forget(module: ModuleType) -> None:
    """Have the next import of its name load the library."""
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]
