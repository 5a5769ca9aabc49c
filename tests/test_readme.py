"""The README's examples give what the README says."""

import doctest
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples():
    results = doctest.testfile(str(README), module_relative=False, encoding="utf-8")
    assert results.attempted > 0
    assert results.failed == 0
