"""A folder is read from the ground up: at most five floors of imports in any, and no rings."""

from pathlib import Path

import pytest

from tests.architecture.floors import longest_chain, modules, rooms, too_deep

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "detector": "detector",
    "platform/runyard": "runyard",
    "experiments": "experiments",
    "benchmarks": "benchmarks",
}
MOST_FLOORS = 5

ENFORCED = True
"""True once the tree is within the limit."""


@pytest.mark.skipif(not ENFORCED, reason="the tree is not yet within the limit")
def test_no_folder_has_more_than_five_floors():
    assert too_deep(modules(ROOT, PACKAGES), MOST_FLOORS) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package `made` with three floors: high over middle over low, and a sub-folder under middle."""
    files = {
        "made/__init__.py": "",
        "made/low.py": "import os\n",
        "made/middle.py": "def f():\n    from made.inner import deep\n    from . import low\n",
        "made/high.py": "from made.middle import f\nimport made.low\n",
        "made/inner/__init__.py": "",
        "made/inner/deep.py": "from made.inner.deeper import x\n",
        "made/inner/deeper.py": "from ..low import x\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_sub_folder_is_one_room(tree):
    found = rooms(modules(tree, {"made": "made"}))
    assert found["made"] == {
        "__init__": set(),
        "low": set(),
        "middle": {"inner", "low"},
        "high": {"middle", "low"},
        "inner": {"low"},
    }
    assert found["made.inner"] == {"__init__": set(), "deep": {"deeper"}, "deeper": set()}


def test_floors_are_counted_along_the_longest_chain(tree):
    files = modules(tree, {"made": "made"})
    assert longest_chain(rooms(files)["made"]) == ["high", "middle", "inner", "low"]
    assert too_deep(files, most=4) == []
    assert too_deep(files, most=3) == ["made: expected at most 3 floors, found 4: high -> middle -> inner -> low"]


def test_a_name_of_the_package_itself_is_an_import_of_its_init_file(tree):
    (tree / "made" / "__init__.py").write_text("answer = 42\n")
    (tree / "made" / "low.py").write_text("from made import answer\n")
    assert rooms(modules(tree, {"made": "made"}))["made"]["low"] == {"__init__"}


def test_scripts_that_import_each_other_by_bare_name_are_found(tree):
    (tree / "made" / "low.py").write_text("import high\n")
    assert rooms(modules(tree, {"made": "made"}))["made"]["low"] == {"high"}
    (tree / "made" / "low.py").write_text("from high import f\n")
    assert rooms(modules(tree, {"made": "made"}))["made"]["low"] == {"high"}


def test_a_ring_is_found(tree):
    (tree / "made" / "low.py").write_text("from made import high\n")
    (found,) = too_deep(modules(tree, {"made": "made"}), most=9)
    assert found == "made: expected no ring, found high -> low -> high"


def test_the_tree_is_found():
    assert {"detector.config", "runyard.spec", "experiments.recipes"} <= set(modules(ROOT, PACKAGES))
