"""The list of Dask's tests that are left out."""

import pytest

from tests.dask_suites import LIST, Exemption, read_list

HEAD = "# Words\n\n| test | reason |\n| --- | --- |\n"


def test_rows_are_patterns_with_reasons():
    rows = read_list(
        HEAD + "| `a.py::test_b[1-x]` | no matter |\n| `a.py::test_c*` | the same |\n\nMore words\n"
    )
    assert rows == [Exemption("a.py::test_b[1-x]", "no matter"), Exemption("a.py::test_c*", "the same")]


@pytest.mark.parametrize("row", ["| `a.py::test_b` |  |", "| `a.py::test_b` |", "| a | b | c |"])
def test_a_row_without_a_reason_is_refused(row):
    with pytest.raises(ValueError, match="a test and a reason"):
        read_list(HEAD + row + "\n")


def test_brackets_are_literal_and_stars_are_not():
    each = Exemption("a.py::test_b[*-x]", "")
    assert each.fits("a.py::test_b[1-x]")
    assert not each.fits("a.py::test_b1")


def test_the_list_can_be_read_and_names_no_test_twice():
    patterns = [each.pattern for each in read_list(LIST.read_text())]
    assert patterns
    assert len(patterns) == len(set(patterns))
