"""Libraries that are loaded when they are used, not when others import them to know their objects."""

import importlib
import subprocess
import sys
from types import ModuleType

import pytest

from graphmill.workers.deferred import deferring, without_need


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Write a package that can be imported; what tests have loaded of it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name, source="", part=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(source)
        (folder / "part.py").write_text(part)
        importlib.invalidate_caches()
        names.append(name)
        return name

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            del sys.modules[name]


def test_who_looks_at_a_deferred_library_loads_it(library):
    library("heavy_library", "size = 3")
    library("light_library", "import heavy_library")
    with deferring(["heavy_library"]):
        import light_library
    assert "heavy_library" not in sys.modules
    assert light_library.heavy_library.__name__ == "heavy_library"
    assert "heavy_library" not in sys.modules
    assert light_library.heavy_library.size == 3
    import heavy_library

    assert heavy_library.size == 3
    assert heavy_library is not light_library.heavy_library
    with pytest.raises(AttributeError, match="no attribute 'weight'"):
        _ = light_library.heavy_library.weight


def test_who_needs_a_deferred_library_at_once_gets_it(library):
    library("heavy_library", "class Base: pass\ndef number(): return 5")
    library("light_library", "import heavy_library\nclass Mine(heavy_library.Base): pass")
    library("other_library", "from heavy_library import number\nimport heavy_library")
    with deferring(["heavy_library"]):
        import light_library
        import other_library

        assert "heavy_library" in sys.modules
    assert other_library.number() == 5
    assert light_library.Mine.__mro__[1] is other_library.heavy_library.Base
    assert sys.modules["heavy_library"] is other_library.heavy_library


def test_a_part_of_a_deferred_library_loads_it(library):
    library("heavy_library", "size = 3", part="half = 2")
    library("light_library", "import heavy_library\nimport heavy_library.part")
    with deferring(["heavy_library"]):
        import light_library
    real = sys.modules["heavy_library"]
    assert type(real) is ModuleType
    assert (real.size, real.part.half, light_library.heavy_library.part.half) == (3, 2, 2)


def test_what_is_not_there_cannot_be_imported(library):
    library("light_library", "try:\n    import no_library\nexcept ImportError:\n    no_library = None")
    with deferring(["no_library"]):
        import light_library
    assert light_library.no_library is None


def test_a_broken_library_says_so_each_time(library):
    library("heavy_library", "raise ValueError('broken')")
    library("light_library", "import heavy_library")
    with deferring(["heavy_library"]):
        import light_library
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            _ = light_library.heavy_library.size
    with pytest.raises(ValueError, match="broken"):
        import heavy_library  # noqa: F401


def test_imports_are_as_before_afterwards(library):
    before = list(sys.meta_path)
    library("light_library", "raise KeyError('mine')")
    with pytest.raises(KeyError, match="mine"), deferring(["pandas"]):
        import light_library  # noqa: F401
    assert sys.meta_path == before


def fake(name, **namespace):
    module = ModuleType(name)
    vars(module).update(namespace)
    return module


PANDAS = fake("pandas")
FRAME = type("DataFrame", (), {"__module__": "pandas.core.frame"})
DASK = fake("dask.array.core", xr=fake("xarray"))


class Strange:
    """Fails for whoever looks at it."""

    @property
    def __class__(self):
        raise RuntimeError("not bound to anything")


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ({}, ()),
        ({"__main__": fake("__main__", x=1)}, ()),
        ({"pandas": PANDAS}, ("pandas",)),
        ({"xarray": fake("xarray", pd=PANDAS), "pandas": PANDAS}, ("xarray", "pandas")),
        ({"pandas": PANDAS, "dask.array.core": DASK}, ("pandas",)),
        ({"pandas": PANDAS, "__main__": fake("__main__", x=1, y=Strange())}, ("pandas",)),
        ({"pandas": PANDAS, "strange": object()}, ("pandas",)),
        # What the user's own modules have, or other libraries.
        ({"pandas": PANDAS, "__main__": fake("__main__", pd=PANDAS)}, ()),
        ({"pandas": PANDAS, "my_library.tools": fake("tools", Frame=FRAME)}, ()),
        ({"pandas": PANDAS, "__main__": fake("__main__", frame=FRAME())}, ()),
        ({"pandas": PANDAS, "__main__": fake("__main__", part=fake("pandas.core"))}, ()),
        ({"pandas": PANDAS, "dask.dataframe": fake("dask.dataframe")}, ()),
    ],
)
def test_what_nobody_has_use_for(loaded, found):
    assert without_need(loaded) == found


SCRIPT = """
import sys
{first}
import dask
import dask.array as da
import graphmill

def loaded():
    before = "xarray" in sys.modules
    array = da.core.asanyarray([1, 2])  # asks whether that is one of xarray's
    return before, "xarray" in sys.modules

with graphmill.Engine(1) as engine:
    print("xarray" in sys.modules, *engine.get({{"x": (loaded,)}}, "x"))
"""


@pytest.mark.parametrize(("first", "told"), [("", "True False True"), ("import xarray", "True True True")])
def test_workers_have_no_xarray_but_if_it_is_used(first, told):
    pytest.importorskip("xarray")
    pytest.importorskip("dask.array")
    command = [sys.executable, "-c", SCRIPT.format(first=first)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert (done.stdout.strip(), done.stderr) == (told, "")
