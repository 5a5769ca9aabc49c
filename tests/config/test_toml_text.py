"""Lines in TOML files, and changes that leave all else as it is."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphmill.config.toml_text import line_of, with_value, without

TEXT = """\
# at the top

workers = 4  # four, not "#5"
spill_folder = '''
a # b
[x]'''

[machine."node-*"]   # these
workers = 24

[tool.other]
list = [
  "a",  # ]
]
[[tool.many]]
x = 1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("workers",), 3),
        (("spill_folder",), 4),
        (("machine", "node-*"), 8),
        (("machine", "node-*", "workers"), 9),
        (("tool", "other", "list"), 12),
        (("tool", "many", "x"), 16),
        (("x",), None),
    ],
)
def test_lines(path, line):
    assert line_of(TEXT, path) == line


class TestChanges:
    @pytest.mark.parametrize(
        ("path", "value", "line"),
        [
            (("workers",), 5, 'workers = 5  # four, not "#5"'),
            (("warm_limit",), "1MB", 'warm_limit = "1MB"'),
            (("machine", "node-*", "workers"), "auto", 'workers = "auto"'),
            (("machine", "node-*", "rerun_exceptions_locally"), True, "rerun_exceptions_locally = true"),
            (("machine", 'od"d', "workers"), 3, "workers = 3"),
        ],
    )
    def test_only_one_line(self, path, value, line):
        changed = with_value(TEXT, path, value)
        before, after = TEXT.split("\n"), changed.split("\n")
        assert line in after
        assert len(set(before) - set(after)) <= 1
        assert [each for each in after if each.startswith("#")] == ["# at the top"]
        expected = tomllib.loads(TEXT)
        inner = expected
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
        assert tomllib.loads(changed) == expected

    def test_several_lines_become_one(self):
        changed = with_value(TEXT, ("spill_folder",), "/x")
        assert tomllib.loads(changed)["spill_folder"] == "/x"
        assert changed.count("\n") == TEXT.count("\n") - 2

    def test_into_nothing(self):
        assert with_value("", ("workers",), 3) == "workers = 3\n"
        assert with_value("# mine\n", ("workers",), 3) == "# mine\nworkers = 3\n"
        assert with_value("", ("machine", "a.b", "workers"), 3) == '[machine."a.b"]\nworkers = 3\n'

    def test_before_the_first_table(self):
        assert with_value("# t\n[a]\nx = 1\n", ("workers",), 3) == "# t\nworkers = 3\n\n[a]\nx = 1\n"

    def test_remove(self):
        changed = without(TEXT, ("machine", "node-*", "workers"))
        assert tomllib.loads(changed)["machine"] == {"node-*": {}}
        assert without(TEXT, ("x",)) == TEXT

    @given(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.text(st.characters(exclude_categories=["Cs"])),
    )
    def test_any_text(self, name, value):
        changed = with_value(TEXT, ("machine", name, "spill_folder"), value)
        assert tomllib.loads(changed)["machine"][name]["spill_folder"] == value
