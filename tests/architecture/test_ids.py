"""No test is lost unnoticed: each id of before exists today, or is mapped to the test that took its place."""

import pytest

from tests.architecture.ids import BEFORE, MAPPING, WHOLE_COLLECTION, collect, losses, parse_mapping

OLD = ["tests/a.py::test_one", "tests/a.py::test_two[x]", "tests/a.py::test_two[y -> z | w]"]


@pytest.mark.processes
def test_every_test_of_before_exists_or_is_mapped(request):
    today = request.config.stash.get(WHOLE_COLLECTION, None) or collect()
    lost = losses(BEFORE.read_text().splitlines(), set(today), parse_mapping(MAPPING.read_text()))
    assert lost == [], "expected these tests: map a renamed or dropped one in tests/golden/test_id_mapping.txt"


def test_an_unchanged_tree_loses_nothing():
    assert losses(OLD, set(OLD), {}) == []


def test_a_missing_test_is_a_loss():
    assert losses(OLD, set(OLD[:2]), {}) == [OLD[2]]


@pytest.mark.parametrize(
    ("mapping", "today"),
    [
        ("tests/a.py -> tests/b/a.py | moved", [name.replace("a.py", "b/a.py") for name in OLD]),
        ("tests/a.py::test_two -> tests/a.py::test_2 | shorter", [name.replace("test_two", "test_2") for name in OLD]),
        (
            "tests/a.py::test_two -> tests/a.py::test_2[*] | other cases",
            [OLD[0], "tests/a.py::test_2[1]", "tests/a.py::test_2[2]"],
        ),
        ("tests/a.py::test_two -> - | the function is gone", OLD[:1]),
        (
            "tests/a.py::test_two[y -> z | w] -> tests/a.py::test_two[q] | renamed",
            [*OLD[:2], "tests/a.py::test_two[q]"],
        ),
    ],
    ids=["file", "function", "any case", "dropped", "one case"],
)
def test_a_mapped_test_is_no_loss(mapping, today):
    assert losses(OLD, set(today), parse_mapping(mapping)) == []


def test_a_mapping_to_a_test_that_does_not_exist_is_a_loss():
    mapping = parse_mapping("tests/a.py::test_one -> tests/a.py::test_1 | shorter")
    assert losses(OLD, set(OLD), mapping) == ["tests/a.py::test_one -> tests/a.py::test_1"]


def test_fewer_cases_are_a_loss():
    mapping = parse_mapping("tests/a.py::test_two -> tests/a.py::test_2[*] | other cases")
    assert losses(OLD, {OLD[0], "tests/a.py::test_2[1]"}, mapping) == [
        "tests/a.py::test_2: expected at least 2 cases, found 1"
    ]


def test_the_more_exact_line_wins():
    mapping = parse_mapping("tests/a.py -> tests/b.py | moved\ntests/a.py::test_one -> tests/c.py::test_one | moved")
    today = {"tests/c.py::test_one", *(name.replace("a.py", "b.py") for name in OLD[1:])}
    assert losses(OLD, today, mapping) == []


@pytest.mark.parametrize(
    "line",
    ["tests/a.py -> tests/b.py", "tests/a.py -> tests/b.py | ", "tests/a.py::f | gone", "a.py -> b.py | moved"],
)
def test_a_malformed_line_is_refused(line):
    with pytest.raises(ValueError, match="expected `old id -> new id"):
        parse_mapping(line)


def test_comments_and_empty_lines_map_nothing():
    assert parse_mapping("# tests/a.py -> tests/b.py | moved\n\n") == {}


def test_an_id_mapped_twice_is_refused():
    with pytest.raises(ValueError, match="expected each id once"):
        parse_mapping("tests/a.py -> tests/b.py | moved\ntests/a.py -> - | dropped")
