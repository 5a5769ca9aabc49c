import os

import numpy as np
import pytest

from graphmill.memory.codec import decode, encode

SIZE = 10_000


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "data.bin"
    np.arange(SIZE, dtype="i4").tofile(file)
    return file


def round_trip(value):
    refs = []

    def place(memory, owner):
        refs.append(bytearray(memory))

    payload, _ = encode(value, place)
    return decode(payload, refs), bool(refs)


def test_writes_arrive_in_the_file(path):
    array = np.memmap(path, "i4", "r+")
    result, copied = round_trip(array)
    assert not copied
    assert type(result) is np.memmap
    assert (result == array).all()
    result[3] = -1
    result.flush()
    assert np.fromfile(path, "i4")[3] == -1
    assert array[3] == -1


def test_a_new_file_is_not_emptied(tmp_path):
    array = np.memmap(tmp_path / "new.bin", "f8", "w+", shape=(100, 100))
    array[:] = 5
    result, copied = round_trip(array)
    assert not copied
    assert (result == 5).all()
    assert (array == 5).all()


@pytest.mark.parametrize("mode", ["r", "r+"])
@pytest.mark.parametrize("offset", [0, 12, 8000])
def test_parts(path, mode, offset):
    whole = np.memmap(path, "i4", mode, offset, shape=(40, 50))
    for array in (
        whole,
        whole[7:21],
        whole[::-2, 5:40:3],
        whole.T,
        whole[3],
        whole[5:6, 5:6],
        whole[:, ::-1],
    ):
        result, copied = round_trip([array])
        assert not copied
        assert type(result[0]) is np.memmap
        assert result[0].dtype == array.dtype
        assert (result[0] == array).all()
        again, copied = round_trip(result[0])  # on to the next process
        assert not copied
        assert (again == array).all()
        assert again.mode == mode
        assert again.flags.writeable == (mode == "r+")


def test_fortran_order_and_other_dtypes(path):
    array = np.memmap(path, ">f4", "r", 16, shape=(30, 40), order="F")
    result, _ = round_trip(array)
    assert result.flags.f_contiguous
    assert result.dtype == array.dtype
    assert result.tobytes() == array.tobytes()


def test_read_only_views_of_writable_files_stay_so(path):
    array = np.memmap(path, "i4", "r+")
    array.flags.writeable = False
    result, _ = round_trip(array)
    assert not result.flags.writeable


def test_links_to_the_file(path, tmp_path):
    link = tmp_path / "a link"
    link.symlink_to(path)
    _, copied = round_trip(np.memmap(link, "i4", "r+"))
    assert not copied


def is_copy(array):
    expected = np.array(array)
    result, copied = round_trip(array)
    assert copied
    assert type(result) is np.memmap
    assert result.filename is None
    assert (result == expected).all()
    result[0] = 77
    return True


def test_without_the_file_it_is_a_copy(path):
    array = np.memmap(path, "i4", "r+")
    path.unlink()
    assert is_copy(array)


def test_if_another_file_has_its_name_it_is_a_copy(path, tmp_path):
    array = np.memmap(path, "i4", "r+")
    other = tmp_path / "other.bin"
    np.zeros(SIZE, "i4").tofile(other)
    other.replace(path)
    assert is_copy(array)


def test_private_changes_are_copied(path):
    array = np.memmap(path, "i4", "c")
    array[5] = -3
    assert is_copy(array)
    assert array[0] == 0


def test_a_file_without_a_name(path):
    with open(os.open(path, os.O_RDWR), "r+b") as file:  # noqa: PTH123 - a Path has a name
        array = np.memmap(file, "i4", "r+")
    result, copied = round_trip(array)
    assert copied
    assert (result == array).all()


def test_results_of_arithmetic_are_no_files(path):
    array = np.memmap(path, "i4", "r") + 1
    result, copied = round_trip(array)
    assert copied
    assert (result == array).all()


def test_plain_views_are_copied(path):
    """A plain array may outlive its file; only a memmap says that it is one."""
    array = np.asarray(np.memmap(path, "i4", "r+"))
    result, copied = round_trip(array)
    assert copied
    assert (result == array).all()
