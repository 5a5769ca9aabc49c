import copy
import copyreg
import gc
import pickle
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided, sliding_window_view

try:
    from numpy.lib.array_utils import byte_bounds
except ImportError:  # NumPy 1
    from numpy import byte_bounds

from graphmill.errors import DecodeError, EncodeError
from graphmill.memory.block import Encoded, Extent
from graphmill.memory.codec import PAYLOAD_LIMIT, THRESHOLD, decode, encode

BIG = 4 * THRESHOLD // 8


class Store:
    """Stands in for shared memory: copies what it is given into memory of its own."""

    def __init__(self):
        self.blocks = []
        self.given = []

    def place(self, memory, owner):
        assert memory.dtype == np.uint8
        assert memory.ndim == 1
        assert memory.flags.c_contiguous
        self.blocks.append(bytearray(memory))
        self.given.append((memory.ctypes.data, memory.nbytes))
        return len(self.blocks) - 1

    def buffers(self, refs):
        return [self.blocks[ref] for ref in refs]


def round_trip(value, threshold=THRESHOLD):
    store = Store()
    payload, refs = encode(value, store.place, threshold=threshold)
    assert refs == list(range(len(store.blocks)))
    return decode(payload, store.buffers(refs))


def placed(value, threshold=THRESHOLD):
    """The address and length of each buffer that encoding a value hands over."""
    store = Store()
    encode(value, store.place, threshold=threshold)
    return store.given


def spot(array):
    return array.__array_interface__["data"][0], array.nbytes


def same_array(left, right):
    assert type(left) is type(right)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert np.asarray(left).tobytes() == np.asarray(right).tobytes()
    return True


# ---- plain arrays


dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.unsigned_integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?"),
    npst.complex_number_dtypes(endianness="?"),
    npst.datetime64_dtypes(endianness="?"),
    npst.timedelta64_dtypes(endianness="?"),
    npst.byte_string_dtypes(endianness="?"),
    npst.unicode_string_dtypes(endianness="?"),
    npst.array_dtypes(),
    st.just(np.dtype("f8", metadata={"unit": "m"})),
)


@st.composite
def arrays(draw):
    """Arrays of any dtype and shape, seen in any way: transposed, stepped, reversed, repeated."""
    array = draw(npst.arrays(draw(dtypes), npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = [draw(st.sampled_from([1, 1, 2, 3, -1, -2])) for _ in range(array.ndim)]
    array = array[(*(slice(None, None, step) for step in steps), ...)]
    if draw(st.booleans()):
        array = np.broadcast_to(array[np.newaxis], (draw(st.integers(1, 5)), *array.shape))
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


@settings(deadline=None, max_examples=300)
@given(arrays(), st.sampled_from([1, 8, 100, THRESHOLD]), st.booleans())
def test_arrays_come_back_equal_and_their_own(array, threshold, nested):
    before = array.tobytes()
    store = Store()
    payload, refs = encode([array] if nested else array, store.place, threshold=threshold)
    result = decode(payload, store.buffers(refs))
    result = result[0] if nested else result
    assert same_array(result, array)
    if result.flags.writeable and result.dtype.kind != "M":
        result[...] = np.zeros((), result.dtype)
        assert array.tobytes() == before


@settings(deadline=None, max_examples=100)
@given(arrays(), st.booleans())
def test_only_elements_that_share_memory_are_read_only(array, nested):
    result = round_trip([array] if nested else array, threshold=1)
    result = result[0] if nested else result
    if not result.flags.writeable:
        assert any(stride == 0 and n > 1 for stride, n in zip(array.strides, array.shape, strict=True))
        assert not array.flags.writeable


@pytest.mark.parametrize(
    "array",
    [
        np.arange(BIG, dtype="f8"),
        np.arange(BIG, dtype=">i8"),
        np.asfortranarray(np.arange(BIG, dtype="f8").reshape(64, -1)),
        np.arange(BIG, dtype="f8").reshape(16, 32, -1).transpose(1, 0, 2),
        np.arange(BIG, dtype="f8")[::-1],
        np.arange(2 * BIG, dtype="f8")[::2],
        np.arange(2 * BIG, dtype="f8").reshape(64, -1)[::-1, 5:-5],
        np.arange(BIG).astype("M8[us]"),
        np.zeros(BIG, dtype=[("x", "f8"), ("y", "i4")])["x"],
        sliding_window_view(np.arange(BIG, dtype="f8"), 7),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_views_that_show_enough_are_handed_over_as_they_lie(array, nested):
    """No copy is made, so memory that lies in a block already can be referred to."""
    value = (array,) if nested else array
    low, high = byte_bounds(array)
    assert placed(value) == [(low, high - low)]
    result = round_trip(value)
    assert same_array(result[0] if nested else result, array)


@pytest.mark.parametrize("nested", [False, True])
def test_views_that_show_little_are_copied(nested):
    whole = np.arange(10 * BIG, dtype="f8")
    for array in (whole[::10], whole.reshape(-1, 128)[:, 7:13].T, np.broadcast_to(whole[::-10], (50, BIG))):
        [(address, nbytes)] = placed([array] if nested else array)
        low, high = byte_bounds(whole)
        assert not low <= address < high
        assert nbytes <= whole.nbytes // 10
        result = round_trip([array] if nested else array)
        assert same_array(result[0] if nested else result, array)


@pytest.mark.parametrize("nested", [False, True])
def test_repeated_elements_never_become_more(nested):
    array = np.broadcast_to(np.float64(7), (3000, 3000))
    store = Store()
    payload, refs = encode([array] if nested else array, store.place)
    assert len(payload) < 500
    assert refs == []
    result = decode(payload)
    result = result[0] if nested else result
    assert same_array(result, array)
    assert result.strides == array.strides
    assert not result.flags.writeable  # as it was: one element stands for all


def test_writable_elements_that_share_memory_still_do():
    array = as_strided(np.arange(BIG, dtype="f8"), (3, BIG), (0, 8))
    result = round_trip(array)
    result[0, 0] = 5
    assert result[2, 0] == 5


def test_warnings_on_writing_to_broadcast_arrays_are_not_woken():
    array, _ = np.broadcast_arrays(np.arange(BIG), np.zeros((4, 1)))
    assert same_array(round_trip([array])[0], array)
    assert same_array(round_trip(array), array)


def test_read_only_arrays_come_back_writable():
    for size in (3, BIG):
        array = np.frombuffer(bytes(8 * size))
        for result in (round_trip(array), round_trip([array])[0]):
            result[0] = 1
            assert result[0] == 1


def test_arrays_lie_in_the_memory_that_decode_is_given():
    payload, _ = encode(np.arange(BIG), Store().place)
    memory = np.zeros(8 * BIG, np.uint8)
    result = decode(payload, [memory])
    result[:] = -1
    assert (memory == 255).all()
    assert not decode(payload, [bytes(memory)]).flags.writeable


def test_memory_orders_survive():
    for size in (4, 200):
        array = np.asfortranarray(np.random.default_rng(0).random((size, size)))
        assert round_trip(array).flags.f_contiguous
        assert round_trip([array])[0].flags.f_contiguous


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5),
        np.array([], dtype="f4"),
        np.zeros((0, 5), dtype="U3"),
        np.array(["", ""], dtype="U0") if np.dtype("U0").itemsize == 0 else np.array([""]),
        np.zeros(3, dtype="V0"),
        np.array([b"a\0b", b"cd"], dtype="V3"),
        np.arange(5, dtype=np.longdouble) / 3,
        np.array([b"abc", b""]),
        np.array([None, {"a": 1}, np.arange(3)], dtype=object)[:2],
        np.zeros(3, dtype=[("x", "O"), ("y", "f8")]),
        np.zeros(4, dtype=np.dtype([("x", "i1"), ("y", "f8")], align=True)),
        np.zeros(4, dtype=[("x", "f4", (2, 3))]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
@pytest.mark.parametrize("threshold", [1, THRESHOLD])
def test_odd_arrays(array, threshold):
    for result in (round_trip(array, threshold), round_trip((array,), threshold)[0]):
        assert result.dtype == array.dtype
        assert result.shape == array.shape
        assert str(result.tolist()) == str(array.tolist())


def test_metadata_of_a_dtype_survives():
    array = np.zeros(BIG, np.dtype("f8", metadata={"unit": "m"}))
    assert dict(round_trip(array).dtype.metadata) == {"unit": "m"}


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="NumPy 2 has them")
def test_strings_of_any_length():
    array = np.array(["a", "b" * 50, "ü"] * 1000, dtype=np.dtypes.StringDType())
    result = round_trip(array)
    assert result.dtype == array.dtype
    assert (result == array).all()


def test_arrays_inside_object_arrays():
    inner = np.arange(BIG)
    array = np.array([inner, None, "x"], dtype=object)
    assert placed(array) == [spot(inner)]
    result = round_trip(array)
    assert same_array(result[0], inner)
    assert result[1:].tolist() == [None, "x"]


# ---- subclasses of arrays


class Tagged(np.ndarray):
    def __array_finalize__(self, obj):
        self.tag = getattr(obj, "tag", None)


class Stateful(np.ndarray):
    def __reduce__(self):
        return Stateful.make, (self.tolist(),)

    @classmethod
    def make(cls, values):
        return np.array(values).view(cls)


@pytest.mark.parametrize("size", [3, 300])
def test_subclasses(size):
    square = np.arange(size * size, dtype="f8").reshape(size, size)
    assert same_array(round_trip(square.view(np.matrix)), square.view(np.matrix))
    records = np.rec.fromarrays([square.ravel(), square.ravel() > 1], names="a,b")
    result = round_trip(records)
    assert type(result) is np.recarray
    assert result.dtype == records.dtype
    assert result.dtype.type is np.record
    assert (result.a == records.a).all()
    tagged = square.view(Tagged)
    tagged.tag = {"unit": "m"}
    result = round_trip(tagged)
    assert same_array(result, tagged)
    assert result.tag == {"unit": "m"}
    stateful = square.view(Stateful)
    assert same_array(round_trip(stateful), stateful)


def test_subclasses_are_handed_over_as_they_lie():
    array = np.arange(BIG).view(Tagged)
    assert placed(array) == [spot(array)]


@pytest.mark.parametrize("size", [4, BIG])
def test_masked_arrays(size):
    data = np.arange(size, dtype="f8")
    for mask in (np.ma.nomask, data > 2):
        array = np.ma.MaskedArray(data, mask=mask, fill_value=-5, hard_mask=True)
        result = round_trip({"x": array})["x"]
        assert type(result) is np.ma.MaskedArray
        assert same_array(result.data, array.data)
        assert (result.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
        assert (np.ma.getmaskarray(result) == np.ma.getmaskarray(array)).all()
        assert result.fill_value == -5
        assert result.hardmask
        result[0] = 99
        assert array.data[0] == 0
    assert round_trip(np.ma.MaskedArray(data)).fill_value == np.ma.MaskedArray(data).fill_value
    assert round_trip(np.ma.masked) is np.ma.masked


def test_masked_arrays_of_more_than_numbers():
    array = np.ma.MaskedArray(np.zeros(3, [("a", "i4"), ("b", "f8")]), mask=[(1, 0), (0, 0), (1, 1)])
    result = round_trip(array)
    assert result.mask.tolist() == array.mask.tolist()
    matrix = np.ma.MaskedArray(np.eye(2).view(np.matrix), mask=[[0, 1], [0, 0]])
    assert type(round_trip(matrix).data) is np.matrix


def test_parts_of_masked_arrays_are_handed_over_as_they_lie():
    array = np.ma.MaskedArray(np.arange(10 * BIG), mask=np.zeros(10 * BIG, bool))
    assert placed(array) == [spot(array.data), spot(array.mask)]


# ---- values of any type


@dataclass
class Holder:
    array: np.ndarray
    name: str


class Slotted:
    __slots__ = ("array",)

    def __init__(self, array):
        self.array = array


class Pair(NamedTuple):
    left: object
    right: object


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        10**40,
        2.5,
        1j,
        "text",
        b"bytes",
        ...,
        (),
        (1, "a", None),
        tuple(range(100)),
        [1, [2, (3,)]],
        {"a": {1, 2}},
        OrderedDict(a=1),
        Fraction(1, 3),
        np.float32(3),
        np.datetime64("2020-01-01"),
        np.str_("x"),
        slice(1, None),
        int,
        np.add,
        len,
        Holder,
        Pair(1, 2),
        "long text " * PAYLOAD_LIMIT,
        b"long bytes" * PAYLOAD_LIMIT,
        bytearray(b"long bytes" * PAYLOAD_LIMIT),
        list(range(PAYLOAD_LIMIT)),
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:20]}",
)
def test_values(value):
    result = round_trip(value)
    assert type(result) is type(value)
    assert result == value


@settings(deadline=None)
@given(
    st.recursive(
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False)
        ),
        lambda inner: st.one_of(
            st.lists(inner), st.tuples(inner, inner), st.dictionaries(st.text(), inner), st.tuples(inner)
        ),
        max_leaves=20,
    ),
    st.sampled_from([1, THRESHOLD]),
)
def test_builtin_values(value, threshold):
    assert round_trip(value, threshold) == value


def test_arrays_anywhere():
    arrays = [np.full(BIG, number) for number in range(6)]
    value = {
        "list": [arrays[0]],
        "tuple": (arrays[1], np.arange(3)),
        "dataclass": Holder(arrays[2], "x"),
        "slots": Slotted(arrays[3]),
        "pair": Pair(arrays[4], None),
        "function": lambda: arrays[5],
    }
    assert placed(value) == [spot(array) for array in arrays[:5]] + placed(value)[5:]
    result = round_trip(value)
    assert same_array(result["list"][0], arrays[0])
    assert same_array(result["tuple"][0], arrays[1])
    assert result["tuple"][1].tolist() == [0, 1, 2]
    assert same_array(result["dataclass"].array, arrays[2])
    assert same_array(result["slots"].array, arrays[3])
    assert same_array(result["pair"].left, arrays[4])
    assert same_array(result["function"](), arrays[5])


def test_one_object_stays_one():
    for size in (3, BIG):
        array = np.arange(size)
        result = round_trip({"a": array, "b": [array]})
        assert result["a"] is result["b"][0]


def test_one_buffer_is_placed_once():
    array = np.arange(BIG)
    other = np.ones(BIG)
    value = [array, array.view(), array.reshape(2, -1), other, array.view("u8")]
    assert placed(value) == [spot(array), spot(other)]
    result = round_trip(value)
    for left, right in zip(result, value, strict=True):
        assert same_array(left, right)
    result[0][0] = 77  # they share memory, as before
    assert result[2][0, 0] == 77
    assert array[0] == 0


def test_copies_made_on_the_way_are_not_taken_for_one():
    whole = np.arange(20 * BIG)
    value = [whole[start::20][::-1] for start in range(20)]
    for left, right in zip(round_trip(value), value, strict=True):
        assert same_array(left, right)


def test_recursive_values():
    value = [np.arange(BIG)]
    value.append(value)
    result = round_trip(value)
    assert result[1] is result


def test_large_payloads_are_placed():
    value = [str(number) for number in range(PAYLOAD_LIMIT)]
    store = Store()
    payload, refs = encode({"text": value, "array": np.arange(BIG)}, store.place)
    assert len(payload) < 10
    assert len(refs) == 2
    assert decode(payload, store.buffers(refs))["text"] == value
    blocks = [memoryview(block) for block in store.blocks]
    assert decode(payload, blocks)["text"] == value


def test_without_a_threshold_all_stays_in_the_payload():
    value = (np.arange(BIG), list(range(PAYLOAD_LIMIT)), b"x" * PAYLOAD_LIMIT)
    payload, refs = encode(value, Store().place, threshold=sys.maxsize)
    assert refs == []
    result = decode(payload)
    assert same_array(result[0], value[0])
    assert result[1:] == value[1:]


def test_payload_may_be_any_buffer():
    for value in (3, np.arange(5), [np.arange(5)]):
        payload, _ = encode(value, Store().place)
        assert np.array_equal(decode(memoryview(payload)), value)


def test_refs_become_an_encoded():
    array = np.arange(BIG)

    def place(memory, owner):
        return Extent(0, 0, 0, memory.nbytes, memory.nbytes)

    payload, refs = encode([array, array.view()], place)
    assert Encoded.of(payload, refs).nbytes == len(payload) + array.nbytes


def test_nothing_is_kept():
    """A claim on memory in place is settled once the value is gone: no reference may stay behind."""
    values = [np.arange(BIG), np.arange(BIG)[::-1], (np.arange(BIG), {"x": np.arange(2 * BIG)[::2]})]
    gc.collect()
    gc.disable()
    try:
        for value in values:
            array = value if isinstance(value, np.ndarray) else value[0]
            count = sys.getrefcount(array)
            encode(value, Store().place)
            assert sys.getrefcount(array) == count
        gone = weakref.ref(values[-1][0])
        del value, values[-1], array
        assert gone() is None
    finally:
        gc.enable()


def test_nothing_is_placed_if_anything_fails():
    def place(memory, owner):
        raise AssertionError("placed")

    with pytest.raises(EncodeError):
        encode([np.arange(BIG), threading.Lock()], place)


def test_errors_of_place_pass_through():
    def place(memory, owner):
        raise OSError("no room")

    for value in (np.arange(BIG), [np.arange(BIG)], b"x" * THRESHOLD):
        with pytest.raises(OSError, match="no room"):
            encode(value, place)


class Explodes:
    def __reduce__(self):
        return explode, ()


def explode():
    raise LookupError("no such thing")


def test_what_cannot_be_rebuilt():
    payload, _ = encode(Explodes(), Store().place)
    with pytest.raises(DecodeError, match="LookupError: no such thing") as info:
        decode(payload)
    assert isinstance(info.value.__cause__, LookupError)


def test_running_out_of_memory_is_no_fault_of_the_value():
    class Hungry:
        def __reduce__(self):
            raise MemoryError

    with pytest.raises(MemoryError):
        encode(Hungry(), Store().place)


# ---- functions and classes


def test_functions_and_local_classes_go_by_value():
    array = np.arange(BIG)

    class Local:
        def value(self):
            return array.sum()

    result = round_trip({"f": lambda x: x + 1, "obj": Local()})
    assert result["f"](2) == 3
    assert type(result["obj"]) is Local
    assert result["obj"].value() == array.sum()


@pytest.mark.parametrize(
    "slots", [("a", "b"), ["a", "b"], {"a": "its doc", "b": ""}, ("a", "b", "__weakref__")]
)
def test_classes_by_value_have_their_slots(slots):
    class Local:
        __slots__ = slots

        def __init__(self, a):
            self.a = a

        def value(self):
            return self.a

    class Derived(Local):
        __slots__ = ("c",)

    for cls in (Local, Derived):
        payload, _ = encode(cls(7), None)
        run = subprocess.run([sys.executable, "-c", SLOTS], input=payload, capture_output=True, check=False)
        assert run.returncode == 0, run.stderr.decode()
        there = decode(run.stdout)
        assert type(there) is cls
        assert there.value() == 8


def test_named_tuples_and_generic_classes_by_value():
    class Pair(NamedTuple):
        a: int
        b: int

    class Box(Generic[T]):
        __slots__ = ("a",)

    box = Box()
    box.a = 3
    payload, _ = encode((Pair(1, 2), box), None)
    run = subprocess.run([sys.executable, "-c", BACK], input=payload, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    pair, box = decode(run.stdout)
    assert pair == Pair(1, 2)
    assert type(pair) is Pair
    assert type(box) is Box
    assert box.a == 3


T = TypeVar("T")
BACK = """
import sys
from graphmill.memory.codec import decode, encode

sys.stdout.buffer.write(encode(decode(sys.stdin.buffer.read()), None)[0])
"""
SLOTS = """
import sys
from graphmill.memory.codec import decode, encode

obj = decode(sys.stdin.buffer.read())
assert not hasattr(obj, "__dict__")
obj.a += 1
sys.stdout.buffer.write(encode(obj, None)[0])
"""


def test_importable_functions_go_by_reference():
    assert round_trip(copy.deepcopy) is copy.deepcopy
    assert round_trip([np.mean, Fraction]) == [np.mean, Fraction]


MAIN = """
import sys
import numpy as np
from dataclasses import dataclass
from graphmill.memory.codec import encode

FACTOR = 3

def scale(x):
    return FACTOR * x

@dataclass
class Point:
    x: object
    def scaled(self):
        return scale(self.x)

payload, refs = encode((scale, Point(np.arange(3)), Point, {"p": [Point(2)]}), None)
sys.stdout.buffer.write(payload)
"""


def test_what_main_defines_goes_by_value():
    """Pickle would only send names, which mean nothing where another module is `__main__`."""
    source = Path(__file__).parents[2] / "src"
    packages = sysconfig.get_path("purelib")
    paths = f"import sys; sys.path[:0] = [{str(source)!r}, {packages!r}]\n"
    run = subprocess.run([sys.executable, "-c", paths + MAIN], capture_output=True, check=True, timeout=60)
    scale, point, cls, nested = decode(run.stdout)
    assert scale(5) == 15
    assert point.scaled().tolist() == [0, 3, 6]
    assert type(point) is cls
    assert type(nested["p"][0]) is cls
    scale, point, *_ = round_trip((scale, point))  # and so it goes back
    assert scale(5) == 15
    assert point.scaled().tolist() == [0, 3, 6]


def test_reducers_that_others_register_are_heard():
    class Opaque:
        def __reduce__(self):
            raise AssertionError("not asked")

    copyreg.pickle(Opaque, lambda obj: (dict, ()))
    try:
        assert round_trip([Opaque()]) == [{}]
    finally:
        del copyreg.dispatch_table[Opaque]


def test_registered_reducers_of_array_types_are_heard():
    copyreg.pickle(Tagged, lambda array: (list, (array.tolist(),)))
    try:
        assert round_trip([np.arange(3).view(Tagged)]) == [[0, 1, 2]]
    finally:
        del copyreg.dispatch_table[Tagged]


def test_buffers_of_any_type_stay_out_of_the_payload():
    class Buffer:
        def __init__(self, data):
            self.data = data

        def __reduce_ex__(self, protocol):
            return Buffer, (pickle.PickleBuffer(self.data),)

    part = memoryview(np.arange(4 * THRESHOLD).astype("u1"))[THRESHOLD : 2 * THRESHOLD]
    for data in (bytearray(b"x" * THRESHOLD), b"x" * THRESHOLD, part, b"short"):
        value = [Buffer(data), Buffer(data)]
        store = Store()
        payload, refs = encode(value, store.place)
        assert len(refs) == (len(data) >= THRESHOLD)
        result = decode(payload, store.buffers(refs))
        assert [bytes(buffer.data) for buffer in result] == [bytes(data)] * 2


# ---- other libraries


def test_pandas():
    pd = pytest.importorskip("pandas")
    n = 10 * THRESHOLD
    frame = pd.DataFrame(
        {
            "number": np.arange(n),
            "real": np.linspace(0, 1, n),
            "time": pd.date_range("2020", periods=n, freq="s"),
            "text": [str(x % 7) for x in range(n)],
            "category": pd.Categorical([x % 3 for x in range(n)]),
        }
    )
    store = Store()
    payload, refs = encode({"frame": frame}, store.place)
    assert len(refs) >= 3
    result = decode(payload, store.buffers(refs))["frame"]
    pd.testing.assert_frame_equal(result, frame)
    result.loc[0, "real"] = 5.0
    result["number"] += 1
    assert frame.loc[0, "real"] == 0
    index = pd.MultiIndex.from_product([range(10), list("abc")])
    pd.testing.assert_index_equal(round_trip(index), index)
    series = frame["real"].iloc[5:10]
    pd.testing.assert_series_equal(round_trip(series), series)


def test_arrow():
    pa = pytest.importorskip("pyarrow")
    n = 10 * THRESHOLD
    table = pa.table({"number": np.arange(n), "text": [str(x) for x in range(n)]})
    store = Store()
    payload, refs = encode(table, store.place)
    assert len(payload) < THRESHOLD
    assert len(refs) == 3
    assert decode(payload, store.buffers(refs)).equals(table)
    assert round_trip([table.slice(5, 3)])[0].equals(table.slice(5, 3))


def test_sparse_matrices():
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random(400, 400, 0.5, format="csr", random_state=0)
    store = Store()
    payload, refs = encode(matrix, store.place)
    assert len(refs) == 2
    assert (decode(payload, store.buffers(refs)) != matrix).nnz == 0


def test_xarray():
    xarray = pytest.importorskip("xarray")
    data = xarray.DataArray(
        np.arange(BIG * 2, dtype="f8").reshape(2, BIG), dims=("x", "y"), coords={"x": ["a", "b"]}, name="n"
    )
    result = round_trip(data.to_dataset())
    xarray.testing.assert_identical(result, data.to_dataset())
    result["n"][0, 0] = 9
    assert data[0, 0] == 0
    assert spot(data.values) in placed(data)


def test_dask_tasks():
    spec = pytest.importorskip("dask._task_spec")
    array = np.arange(BIG)
    task = spec.Task("key", np.add, spec.TaskRef("x"), array)
    assert spot(array) in placed(task)
    assert (round_trip(task)({"x": 1}) == array + 1).all()
