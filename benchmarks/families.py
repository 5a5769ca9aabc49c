"""Graph families for judging task order: Dask's own graphs, with the bytes each task returns.

Each family is a recipe of ``dask.array`` calls that people really make. The graph is taken where a
scheduler would receive it, after Dask's own optimisation, so fusion has already happened: what is
judged is the order of the tasks a scheduler really gets. It is then run once, on small chunks, and
the size of every result is written down. Chunks are small so that this is quick; what an order is
judged by is the *ratio* between sizes, and that is kept: one time chunk over all of space against
one map, a block against its edge.

Arrays come from Zarr, so that every chunk is a task that reads, and so that the graph itself holds
no data. Results are either small (a reduction) or stored away, as they must be when the data are
larger than memory.

Nothing here knows of graphmill: the families judge any order alike.

    python -m benchmarks.families              # a table of all families
    python -m benchmarks.families qr svd --scale small
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import dask.array
import dask.base
import dask.core
import numpy as np
import zarr
from dask._task_spec import Alias, DataNode, convert_legacy_graph
from dask.delayed import delayed

# Dask is annotated in part only: its collections, and what makes them, are `Any` here.
da: Any = dask.array
compute: Any = dask.base.compute
flatten: Any = dask.core.flatten

Key = Hashable
Scale = Literal["small", "medium", "large"]
#: What a recipe asks Dask to compute, all at once.
Collections = Sequence[Any]

#: Shape of one time chunk over all of space (48 KiB of float64); a map is an eighth of it.
FIELD_CHUNK = (8, 24, 32)
#: Shape of one block of a matrix (18 KiB of float64).
BLOCK = (48, 48)
#: Chunks are a thousandth of real ones, and so must be the size that Dask keeps chunks near:
#: otherwise a rechunk would gather the whole array into one chunk on its way.
DASK_CONFIG = {"array.chunk-size": "128KiB", "array.rechunk.method": "tasks"}
#: Groups in the climatologies, as months in a year.
MONTHS = 12


@dataclass(frozen=True, slots=True)
class Case:
    """One graph as a scheduler receives it, and the bytes that each of its tasks returns."""

    #: Family, a key of `FAMILIES`.
    name: str
    #: Dask's graph nodes by key; closed under `dependencies`.
    dsk: dict[Key, Any]
    #: The keys asked for, flat: their results are held to the end.
    keys: list[Key]
    #: Bytes of each key's result; all one if they were not measured. An alias has the bytes of
    #: what it stands for, though the two are one object: see `aliases`.
    nbytes: dict[Key, int]
    #: What the computation is, in a line.
    description: str

    @property
    def dependencies(self) -> dict[Key, frozenset[Key]]:
        """The keys whose results each key's task takes, computed anew."""
        return {key: frozenset(node.dependencies) for key, node in self.dsk.items()}

    @property
    def aliases(self) -> dict[Key, Key]:
        """The key that each alias stands for: its result is the same object, not a copy."""
        return {key: node.target for key, node in self.dsk.items() if isinstance(node, Alias)}


@dataclass(frozen=True, slots=True)
class Family:
    """A recipe and how large to make it; call it to build a `Case`."""

    #: Name, as in `FAMILIES`.
    name: str
    #: From a number of chunks to the collections to compute.
    recipe: Callable[[int], Collections]
    #: The recipe's number: tens of tasks, for searches that try many orders.
    small: int
    #: The recipe's number: 200 to 1,500 tasks, for judging.
    medium: int
    #: The recipe's number: 20,000 tasks and more, for what ordering itself costs.
    large: int

    def __call__(self, scale: Scale = "medium", *, measure: bool = True) -> Case:
        """Build the graph and, unless told otherwise, run it once to measure its results.

        Parameters
        ----------
        scale
            Which of the three sizes to build.
        measure
            False takes every result as one byte: for graphs that are too large to run in passing.
        """
        sizes = {"small": self.small, "medium": self.medium, "large": self.large}
        with dask.config.set(DASK_CONFIG), warnings.catch_warnings():
            # Many blocks are what is wanted here.
            warnings.simplefilter("ignore", da.PerformanceWarning)
            dsk, keys = capture(self.recipe(sizes[scale]))
        nbytes = measured(dsk) if measure else dict.fromkeys(dsk, 1)
        return Case(self.name, dsk, keys, nbytes, self.recipe.__doc__ or "")


# --- from collections to a graph with sizes ---------------------------------------------------


class _Captured(Exception):
    """Carries a graph out of `dask.compute`, which would otherwise want results for it."""

    def __init__(self, dsk: dict[Key, Any], keys: list[Key]) -> None:
        super().__init__("the graph was captured, not computed")
        self.dsk = dsk
        self.keys = keys


def _capturing_scheduler(dsk: Any, keys: Any, **_: Any) -> NoReturn:
    """Stand in for a scheduler's ``get``."""
    graph = dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk
    raise _Captured(dict(convert_legacy_graph(dict(graph))), list(flatten([keys])))


def capture(collections: Collections) -> tuple[dict[Key, Any], list[Key]]:
    """Take the graph and the keys that ``dask.compute(*collections)`` hands to its scheduler."""
    try:
        compute(*collections, scheduler=_capturing_scheduler)
    except _Captured as captured:
        return captured.dsk, captured.keys
    raise ValueError("nothing to compute: no collection among the arguments")


def sizeof(result: Any) -> int:
    """Bytes that a task's result takes up in memory.

    A view counts for what it shows, not for its base: handed to another process, that is what is
    kept of it. A stored chunk leaves nothing behind.
    """
    if result is None:
        return 0
    if isinstance(result, np.ndarray):
        return int(result.nbytes)
    if isinstance(result, Mapping):
        return sum(sizeof(value) for value in result.values())
    if isinstance(result, list | tuple | set | frozenset):
        return sum(sizeof(item) for item in result)
    return min(max(sys.getsizeof(result), 8), 64)


def measured(dsk: Mapping[Key, Any]) -> dict[Key, int]:
    """Run the graph, dropping each result after its last use, and return every result's bytes."""
    uses = Counter(dep for node in dsk.values() for dep in node.dependencies)
    results: dict[Key, Any] = {}
    nbytes: dict[Key, int] = {}
    for key in topological(dsk):
        node = dsk[key]
        result = node({dep: results[dep] for dep in node.dependencies})
        nbytes[key] = sizeof(result)
        if uses[key]:
            results[key] = result
        for dep in node.dependencies:
            uses[dep] -= 1
            if not uses[dep]:
                del results[dep]
    return nbytes


def topological(dsk: Mapping[Key, Any]) -> Iterator[Key]:
    """Every key after its dependencies, depth first; recursion would be too deep for chains."""
    done: set[Key] = set()
    for start in dsk:
        stack = [start]
        while stack:
            key = stack[-1]
            missing = [dep for dep in dsk[key].dependencies if dep not in done]
            stack.extend(missing)
            if not missing:
                stack.pop()
                if key not in done:
                    done.add(key)
                    yield key


# --- where the arrays come from and where they go ---------------------------------------------


def _from_zarr(name: str, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Any:
    """Array of ones whose chunks are read by tasks of their own."""
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, shape=shape, chunks=chunks, dtype="f8", fill_value=1.0)
    return da.from_zarr(array, name=name)


def field(name: str, n: int) -> Any:
    """Variable over (time, y, x), in `n` chunks of time."""
    steps, *space = FIELD_CHUNK
    return _from_zarr(name, (n * steps, *space), FIELD_CHUNK)


def matrix(name: str, rows: int, columns: int, block: tuple[int, int] = BLOCK) -> Any:
    """Matrix of `rows` by `columns` blocks."""
    return _from_zarr(name, (rows * block[0], columns * block[1]), block)


class Sink:
    """A store that swallows what is written to it, as a file on disk would."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape = shape
        self.dtype = dtype

    def __setitem__(self, index: Any, value: Any) -> None:
        """Take `value`, and keep nothing."""


def stored(*arrays: Any) -> list[Any]:
    """Write `arrays` chunk by chunk, each to a target of its own."""
    targets = [Sink(array.shape, array.dtype) for array in arrays]
    writes = da.store(list(arrays), targets, lock=False, compute=False)
    return list(writes) if isinstance(writes, tuple) else [writes]


# --- recipes: from a number of chunks to collections ------------------------------------------


def blockwise_chain(n: int) -> Collections:
    """Elementwise chain on two fields, which Dask fuses, then a maximum over time."""
    u, v = field("u", n), field("v", n)
    return [da.sqrt(da.exp(u + v) * 2 - u).max(0)]


def outer_difference(n: int) -> Collections:
    """All pairs of blocks, reduced."""
    x, y = matrix("x", n, 1), matrix("y", n, 1)
    return [abs(x[:, None, :] - y[None, :, :]).sum()]


def anomaly(n: int) -> Collections:
    """Spread about the mean over time."""
    x = field("x", n)
    return [(x - x.mean(0)).std()]


def anomaly_kept(n: int) -> Collections:
    """Difference from the mean, stored."""
    x = field("x", n)
    return stored(x - x.mean(0))


def standardised(n: int) -> Collections:
    """Difference from the mean over the spread, stored."""
    x = field("x", n)
    return stored((x - x.mean(0)) / (x.std(0) + 1))


def transpose_sum(n: int) -> Collections:
    """Mean of a matrix and its transpose."""
    x = matrix("x", n, n)
    return [(x + x.T).mean()]


def gram(n: int) -> Collections:
    """Gram matrix of a tall matrix, stored."""
    x = matrix("x", n, 5)
    return stored(x.T @ x)


def tensordot(n: int) -> Collections:
    """Product of two matrices, summed."""
    return [da.tensordot(matrix("a", n, n), matrix("b", n, n), axes=1).sum()]


def power_iteration(n: int) -> Collections:
    """Three products of a matrix and a vector, each from the last."""
    x, v = matrix("x", n, n), matrix("v", n, 1, (BLOCK[0], 1))
    for _ in range(3):
        v = x @ v
        v = v / da.sqrt((v * v).sum())
    return [v]


def rechunk(n: int) -> Collections:
    """Rows to columns, stored."""
    x = matrix("x", n, 1, (8, 48 * n))
    return stored(x.rechunk((8 * n, 48)))


def rechunk_time_series(n: int) -> Collections:
    """Spread of whole time series: chunks of time become chunks of space."""
    x = field("x", n)
    return stored(x.rechunk((-1, 6, 8)).std(0))


def tree_reduction(n: int) -> Collections:
    """Sum over time, two maps at a time."""
    return [field("x", n).sum(0, split_every=2)]


def cumsum(n: int) -> Collections:
    """Cumulative sum down a matrix, stored."""
    return stored(da.cumsum(matrix("x", n, 4), axis=0))


def _smooth(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over each point's neighbours along every axis."""
    total = block.copy()
    for axis in range(block.ndim):
        total += np.roll(block, 1, axis) + np.roll(block, -1, axis)
    return total / (1 + 2 * block.ndim)


def map_overlap_2d(n: int) -> Collections:
    """Neighbours in the plane, stored."""
    return stored(matrix("x", n, n).map_overlap(_smooth, depth=2, boundary="none"))


def map_overlap_3d(n: int) -> Collections:
    """Neighbours in space, stored."""
    x = _from_zarr("x", (n * 16,) * 3, (16,) * 3)
    return stored(x.map_overlap(_smooth, depth=1, boundary="none"))


def gradient(n: int) -> Collections:
    """Size of the gradient, stored."""
    down, across = da.gradient(matrix("x", n, n))
    return stored(da.sqrt(down**2 + across**2))


def difference(n: int) -> Collections:
    """From each time step to the next, stored."""
    return stored(da.diff(field("x", n), axis=0))


def qr(n: int) -> Collections:
    """Tall and skinny; Q stored, R kept."""
    q, r = da.linalg.qr(matrix("x", n, 1, (192, 24)))
    return [*stored(q), r]


def svd(n: int) -> Collections:
    """Tall and skinny; U stored, s and V kept."""
    u, s, v = da.linalg.svd(matrix("x", n, 1, (192, 24)))
    return [*stored(u), s, v]


def svd_compressed(n: int) -> Collections:
    """Randomised singular values, by power iteration."""
    x = matrix("x", n, 4)
    _, s, v = da.linalg.svd_compressed(x, k=8, n_power_iter=2, seed=0)
    return [s, v]


def _heavy_diagonal(block: np.ndarray[Any, Any], block_id: tuple[int, int] = (0, 0)) -> np.ndarray[Any, Any]:
    """Make a matrix of ones positive definite, block by block."""
    row, column = block_id
    return block + len(block) * np.eye(len(block)) if row == column else block


def cholesky(n: int) -> Collections:
    """Lower factor, stored."""
    spd = matrix("x", n, n).map_blocks(_heavy_diagonal, dtype="f8")
    return stored(da.linalg.cholesky(spd, lower=True))


def fft(n: int) -> Collections:
    """Both axes, with a rechunk between, stored."""
    x = matrix("x", n, 1, (8, 8 * n))
    along = da.fft.fft(x, axis=1).rechunk((8 * n, 8))
    return stored(abs(da.fft.fft(along, axis=0)))


def stack(n: int) -> Collections:
    """Mean and spread over an ensemble, stored."""
    members = [field(f"member-{i}", n) for i in range(5)]
    ensemble = da.stack(members)
    return stored(ensemble.mean(0), ensemble.std(0))


def concatenate(n: int) -> Collections:
    """Four parts joined, rechunked across the joints, less their mean."""
    whole = da.concatenate([field(f"part-{i}", n) for i in range(4)])
    return stored(whole.rechunk({0: 12}) - whole.mean(0))


def climatology_group(n: int) -> Collections:
    """Spread about each month's own mean, a month being every twelfth step."""
    x = field("x", n)
    months = [x[month::MONTHS] for month in range(MONTHS)]
    return [da.concatenate([month - month.mean(0) for month in months]).std()]


def climatology_blocks(n: int) -> Collections:
    """Difference from each month's own mean, a month being every twelfth chunk."""
    x = field("x", n * MONTHS)
    months = [x.blocks[month::MONTHS] for month in range(MONTHS)]
    return stored(*[month - month.mean(0) for month in months])


def three_means(n: int) -> Collections:
    """Means over time of u, v and their product, computed at once."""
    u, v = field("u", n), field("v", n)
    return [u.mean(0), v.mean(0), (u * v).mean(0)]


def eddy_fluxes(n: int) -> Collections:
    """Mean of a product less the product of the means."""
    u, v = field("u", n), field("v", n)
    return [(u * v).mean(0) - u.mean(0) * v.mean(0)]


def covariance(n: int) -> Collections:
    """Covariance of two fields, about their means."""
    u, v = field("u", n), field("v", n)
    return [((u - u.mean(0)) * (v - v.mean(0))).mean(0)]


def stores_shared(n: int) -> Collections:
    """Five results of three inputs, stored."""
    a, b, c = (field(name, n) for name in "abc")
    return stored(a + b, a - b * c, da.sqrt(a * a + c * c), c - a.mean(0), b * 2)


def slicing(n: int) -> Collections:
    """Means over overlapping windows, stored."""
    x = field("x", n)
    width, step = 20, 6
    starts = range(0, x.shape[0] - width + 1, step)
    return stored(da.stack([x[start : start + width].mean(0) for start in starts]))


def fancy_indexing(n: int) -> Collections:
    """Unordered steps in time, stored, and the sum of scattered points."""
    x = field("x", n)
    order = np.random.default_rng(0).permutation(x.shape[0])
    points = (order[: x.shape[0] // 2], order[: x.shape[0] // 2] % x.shape[1])
    return [*stored(x[order] * 2), x[:, :, 0].vindex[points].sum()]


def wide_shuffle(n: int) -> Collections:
    """Every block takes a piece of every block, stored."""
    x = matrix("x", n, 1, (4 * n, 16))
    rows = np.arange(x.shape[0])
    return stored(x.shuffle([list(rows[start::n]) for start in range(n)], axis=0))


def coarsen(n: int) -> Collections:
    """Means over boxes that straddle chunks, stored, and a spread."""
    x = field("x", n)
    coarse = da.coarsen(np.mean, x.rechunk({0: 12}), {0: 6, 1: 2, 2: 2}, trim_excess=True)
    return [*stored(coarse), x.std(0)]


def delayed_pipeline(n: int) -> Collections:
    """Files read, cleaned and summarised by delayed calls, which Dask does not fuse."""
    read, clean, summarise, merge = map(delayed, (_read, _clean, _summarise, np.add))
    blocks = [clean(read(i)) for i in range(n)]
    maps = [summarise(block) for block in blocks]
    while len(maps) > 1:
        pairs = zip(maps[::2], maps[1::2], strict=False)
        maps = [merge(a, b) for a, b in pairs] + maps[len(maps) // 2 * 2 :]
    return [maps[0], *(summarise(block - maps[0]) for block in blocks[::4])]


def _read(number: int) -> np.ndarray[Any, Any]:
    """Stand in for reading one file."""
    return np.full(FIELD_CHUNK, float(number))


def _clean(block: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Halve the precision, as packed files often are on the way in."""
    return block.astype("f4")


def _summarise(block: np.ndarray[Any, Any]) -> Any:
    """Mean over time."""
    return block.mean(0)


def _families() -> Iterator[Family]:
    """Every family, with the sizes that put it in each scale's range."""
    yield Family("blockwise chain", blockwise_chain, small=16, medium=300, large=16000)
    yield Family("outer difference", outer_difference, small=4, medium=16, large=128)
    yield Family("anomaly", anomaly, small=8, medium=160, large=5000)
    yield Family("anomaly kept", anomaly_kept, small=8, medium=160, large=7000)
    yield Family("standardised", standardised, small=8, medium=120, large=5000)
    yield Family("transpose sum", transpose_sum, small=4, medium=20, large=120)
    yield Family("x.T @ x", gram, small=2, medium=20, large=600)
    yield Family("tensordot", tensordot, small=3, medium=8, large=26)
    yield Family("power iteration", power_iteration, small=3, medium=10, large=80)
    yield Family("rechunk", rechunk, small=6, medium=24, large=120)
    yield Family("rechunk time series", rechunk_time_series, small=4, medium=24, large=1000)
    yield Family("tree reduction", tree_reduction, small=16, medium=256, large=12000)
    yield Family("cumsum", cumsum, small=4, medium=40, large=2000)
    yield Family("map_overlap 2d", map_overlap_2d, small=3, medium=10, large=50)
    yield Family("map_overlap 3d", map_overlap_3d, small=2, medium=4, large=10)
    yield Family("gradient", gradient, small=3, medium=8, large=50)
    yield Family("difference", difference, small=4, medium=100, large=1800)
    yield Family("qr", qr, small=8, medium=80, large=4000)
    yield Family("svd", svd, small=8, medium=80, large=4000)
    yield Family("svd compressed", svd_compressed, small=2, medium=16, large=500)
    yield Family("cholesky", cholesky, small=4, medium=12, large=46)
    yield Family("fft", fft, small=6, medium=30, large=100)
    yield Family("stack", stack, small=2, medium=20, large=1000)
    yield Family("concatenate", concatenate, small=2, medium=20, large=1000)
    yield Family("climatology group", climatology_group, small=3, medium=24, large=800)
    yield Family("climatology blocks", climatology_blocks, small=2, medium=20, large=600)
    yield Family("three means", three_means, small=6, medium=100, large=4000)
    yield Family("eddy fluxes", eddy_fluxes, small=6, medium=100, large=4000)
    yield Family("covariance", covariance, small=6, medium=100, large=4000)
    yield Family("stores shared", stores_shared, small=4, medium=60, large=2300)
    yield Family("slicing", slicing, small=6, medium=80, large=1800)
    yield Family("fancy indexing", fancy_indexing, small=4, medium=24, large=1500)
    yield Family("wide shuffle", wide_shuffle, small=6, medium=24, large=150)
    yield Family("delayed pipeline", delayed_pipeline, small=12, medium=160, large=6000)
    yield Family("coarsen", coarsen, small=6, medium=90, large=5000)


#: Families by name; each builds a `Case` from a scale.
FAMILIES: dict[str, Family] = {family.name: family for family in _families()}


# --- a table of them all ----------------------------------------------------------------------


def row(case: Case) -> str:
    """One line of the table."""
    dependencies = case.dependencies
    data = {key for key, node in case.dsk.items() if isinstance(node, DataNode)}
    roots = sum(deps <= data for key, deps in dependencies.items() if key not in data)
    edges = sum(map(len, dependencies.values()))
    total, largest = sum(case.nbytes.values()) / 1e6, max(case.nbytes.values()) / 1e6
    return (
        f"{case.name:20} {len(case.dsk) - len(data):7} {edges:7} {len(data):5} "
        f"{total:9.2f} {largest:9.3f} {roots:6}  {case.description}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of the families."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="family", help="default: all of them")
    parser.add_argument("--scale", choices=["small", "medium", "large"], default="medium")
    parser.add_argument("--no-measure", action="store_true", help="take each result as one byte")
    options = parser.parse_args(arguments)
    print(f"{'family':20} {'tasks':>7} {'edges':>7} {'data':>5} {'MB':>9} {'largest':>9} {'roots':>6}")
    for name in options.names or FAMILIES:
        print(row(FAMILIES[name](options.scale, measure=not options.no_measure)), flush=True)


if __name__ == "__main__":
    main()
