"""Work for engines that are disturbed: seeded graphs of dask.array, the same for each seed to the bit."""

import random
import time

import dask.array as da
import numpy as np
from scipy import ndimage

#: Rows and columns of the arrays, and of their chunks; 16 blocks of 0.5 MB.
SIZE, CHUNK = 1_000, 250


def slowly(block, seconds=0.01):
    """Do some work in Python, so that there is time to be killed in."""
    end = time.perf_counter() + seconds
    total = 0
    while time.perf_counter() < end:
        total += sum(range(500))
    return block + np.float64(total > 0)


def in_place(block):
    block *= 2
    block += 1
    return block


def _source(seed):
    x = da.random.default_rng(seed).random((SIZE, SIZE), chunks=CHUNK)
    return x.map_blocks(slowly, dtype=x.dtype)


def transposed(seed):
    x = _source(seed)
    return (x + x.T).map_blocks(slowly, dtype=x.dtype).mean(axis=0)


def anomaly(seed):
    x = _source(seed)
    return (x - x.mean(axis=0)).map_blocks(slowly, dtype=x.dtype).std(axis=1)


def rechunked(seed):
    x = _source(seed).rechunk((SIZE, 50)).map_blocks(slowly, dtype="f8")
    return x.cumsum(axis=0)[::7, ::11]


def product(seed):
    x = _source(seed)
    return (x.T @ x).map_blocks(slowly, dtype=x.dtype).sum(axis=0)


def singular_values(seed):
    x = _source(seed).rechunk((CHUNK, SIZE))[:, :60].map_blocks(slowly, dtype="f8")
    return da.linalg.svd(x)[1]


def smoothed(seed):
    x = _source(seed)
    filtered = x.map_overlap(ndimage.uniform_filter, depth=2, boundary="reflect", size=5)
    return filtered.map_blocks(slowly, dtype=x.dtype)


def changed_in_place(seed):
    x = _source(seed)
    return x.map_blocks(in_place) - x.map_blocks(slowly, dtype=x.dtype)


def pieces(seed):
    x = _source(seed)
    parts = [x[i::3].map_blocks(slowly, dtype=x.dtype) for i in range(3)]
    return da.concatenate(parts)[::2].rechunk((CHUNK, CHUNK)).max(axis=1)


def transformed(seed):
    x = _source(seed).rechunk((CHUNK, SIZE))
    return da.fft.ifft(da.fft.fft(x).map_blocks(slowly, dtype="c16"))[::5]


def masked(seed):
    x = da.ma.masked_greater(_source(seed), 1.5).map_blocks(slowly, dtype="f8")
    return x.sum(axis=0)


KINDS = (
    transposed,
    anomaly,
    rechunked,
    product,
    singular_values,
    smoothed,
    changed_in_place,
    pieces,
    transformed,
    masked,
)


def draw(chance: random.Random):
    """Make some work: its name, and the array to be computed."""
    kind = chance.choice(KINDS)
    return kind.__name__, kind(chance.randrange(1 << 30))


def same(one, other):
    """Whether two results agree to the last bit."""
    if isinstance(one, np.ma.MaskedArray):
        masks = np.array_equal(np.ma.getmaskarray(one), np.ma.getmaskarray(other))
        return masks and same(one.filled(0), other.filled(0))
    return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
