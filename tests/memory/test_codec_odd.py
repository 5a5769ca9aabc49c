"""Odd objects through the codec: what comes out is what went in, whatever is nested in what."""

import copy
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from graphmill.memory.codec import decode, encode

DTYPES = st.one_of(
    npst.integer_dtypes(),
    npst.floating_dtypes(),
    npst.complex_number_dtypes(),
    npst.boolean_dtypes(),
    npst.datetime64_dtypes(),
    npst.unicode_string_dtypes(),
    npst.byte_string_dtypes(),
    npst.array_dtypes(),
)
ARRAYS = npst.arrays(DTYPES, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.binary(min_size=5_000, max_size=6_000).map(bytearray),
    st.sampled_from(
        [Ellipsis, NotImplemented, int, len, slice(1, None), range(3), np.float32, Fraction(1, 3)]
    ),
    st.sampled_from([Decimal("0.1"), date(2024, 1, 1), timedelta(1), PurePosixPath("/x")]),
    ARRAYS,
    ARRAYS.map(lambda array: array.T),
    ARRAYS.map(lambda array: array[::-1] if array.ndim else array),
    ARRAYS.map(np.asfortranarray),
    npst.arrays("f8", (700,)).map(lambda array: np.ma.masked_less(array, 0)),
    npst.arrays("i4", (60, 30)).map(lambda array: array[::2, ::3]),
)
OBJECTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=4),
        st.lists(inner, min_size=1, max_size=3).map(lambda items: [items[0], *items, items]),
    ),
    max_leaves=12,
)


def same(one, other):
    """Whether two objects are of the same type and value; NaN is NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return _same_arrays(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float | complex):
        return repr(one) == repr(other)
    return one is other or one == other


def _same_arrays(one, other):
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if isinstance(one, np.ma.MaskedArray):
        masks = np.array_equal(np.ma.getmaskarray(one), np.ma.getmaskarray(other))
        return masks and np.asarray(one).tobytes() == np.asarray(other).tobytes()
    return one.tobytes() == other.tobytes()


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(OBJECTS)
def test_what_goes_in_comes_out(value):
    before = copy.deepcopy(value)
    buffers = []

    def place(memory, owner):
        buffers.append(np.array(memory, copy=True).view(np.uint8).reshape(-1))
        return len(buffers) - 1

    payload, refs = encode(value, place, name="the value")
    made = decode(payload, [buffers[ref] for ref in refs])
    assert same(made, before)
    assert same(value, before), "it was changed on the way"
