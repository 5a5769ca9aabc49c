"""The families are graphs that can be judged: whole, measured, and the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import numpy as np
import pytest

from benchmarks import families
from benchmarks.families import FAMILIES, Case


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request: pytest.FixtureRequest) -> Case:
    return FAMILIES[request.param]("small")


def shape(case: Case) -> Counter[int]:
    """What the graph looks like when keys, which may differ between builds, are left out.

    A key's colour is its result's size and the colours of its dependencies; equal graphs have
    equal colours.
    """
    colours: dict[Hashable, int] = {}
    for key in families.topological(case.dsk):
        below = sorted(colours[dep] for dep in case.dsk[key].dependencies)
        colours[key] = hash((case.nbytes[key], *below))
    return Counter(colours.values())


def test_graph_is_closed(case: Case) -> None:
    assert case.dsk
    for dependencies in case.dependencies.values():
        assert dependencies <= case.dsk.keys()


def test_keys_are_in_the_graph(case: Case) -> None:
    assert case.keys
    assert set(case.keys) <= case.dsk.keys()


def test_every_result_is_measured(case: Case) -> None:
    assert case.nbytes.keys() == case.dsk.keys()
    assert all(size >= 0 for size in case.nbytes.values())
    assert max(case.nbytes.values()) > 1000


def test_the_graph_holds_no_data(case: Case) -> None:
    held = [case.nbytes[key] for key, deps in case.dependencies.items() if not deps]
    reads = max(case.nbytes.values())
    assert all(size <= reads for size in held)


def test_an_alias_has_the_bytes_of_what_it_stands_for(case: Case) -> None:
    for alias, target in case.aliases.items():
        assert case.dependencies[alias] == {target}
        assert case.nbytes[alias] == case.nbytes[target]


def test_small_is_tens_of_tasks(case: Case) -> None:
    assert 20 <= len(case.dsk) <= 200


def test_building_again_gives_the_same_graph(case: Case) -> None:
    assert shape(FAMILIES[case.name]("small")) == shape(case)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_medium_is_hundreds_of_tasks(name: str) -> None:
    assert 200 <= len(FAMILIES[name]("medium", measure=False).dsk) <= 1500


def test_unmeasured_results_are_one_byte() -> None:
    case = FAMILIES["qr"]("small", measure=False)
    assert set(case.nbytes.values()) == {1}
    assert case.nbytes.keys() == case.dsk.keys()


def test_a_view_counts_for_what_it_shows() -> None:
    base = np.ones((100, 10))
    assert families.sizeof(base[:2]) == 160


def test_containers_are_the_sum_of_their_items() -> None:
    block = np.ones(4)
    assert families.sizeof((block, [block], {"total": block})) == 96


def test_a_stored_chunk_leaves_nothing() -> None:
    assert families.sizeof(None) == 0


def test_nothing_to_compute_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to compute"):
        families.capture([1, 2])


def test_the_table_has_a_line_per_family(capsys: pytest.CaptureFixture[str]) -> None:
    families.main(["qr", "svd", "--scale", "small"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["family", "qr", "svd"]
