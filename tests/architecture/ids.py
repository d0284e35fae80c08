"""Node ids of before against those of today, through a mapping kept by hand.

A line of the mapping is `old -> new | reason`. Both sides are a whole id, a function without its parameters or a file;
the longest `old` that fits wins, and the rest of an id is kept. `new` may be `FUNCTION[*]`, any case of a function (for
parameters that are named by a message), which needs as many cases as before; or `-`, a test that was dropped for the
reason given. A line that begins with # is a comment.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEFORE = ROOT / "tests" / "golden" / "test_ids_before.txt"
MAPPING = ROOT / "tests" / "golden" / "test_id_mapping.txt"
DROPPED = "-"
WHOLE_COLLECTION = pytest.StashKey[list[str]]()
"""The ids of all tests, where pytest was asked for all: tests/conftest.py notes them."""
LINE = re.compile(r"(?P<old>tests/.+?\.py(?:::.+)?) -> (?P<new>-|tests/.+) \| (?P<reason>.*\S.*)")


def parse_mapping(text: str) -> dict[str, str]:
    """The mapping of a file's lines. ValueError for a malformed line and for an id that is mapped twice."""
    mapping: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        if found is None:
            raise ValueError(f"line {number}: expected `old id -> new id | reason`, found {line!r}")
        if found["old"] in mapping:
            raise ValueError(f"line {number}: expected each id once, found {found['old']!r} again")
        mapping[found["old"]] = found["new"]
    return mapping


def function(test_id: str) -> str:
    """An id without its parameters."""
    return test_id.partition("[")[0]


def renamed(old: str, mapping: Mapping[str, str]) -> str:
    """The id of today, `-` where the test was dropped; an id that is not mapped stays as it is."""
    for key in (old, function(old), old.partition("::")[0]):
        if key in mapping:
            new = mapping[key]
            return new if new == DROPPED or new.endswith("[*]") else new + old.removeprefix(key)
    return old


def losses(before: Iterable[str], today: Collection[str], mapping: Mapping[str, str]) -> list[str]:
    """The ids of before that lead to no test of today, and the functions with fewer cases; empty if none is lost."""
    cases = Counter(function(test_id) for test_id in today)
    wanted: Counter[str] = Counter()
    lost = []
    for old in before:
        new = renamed(old, mapping)
        if new.endswith("[*]"):
            wanted[new.removesuffix("[*]")] += 1
        elif new != DROPPED and new not in today:
            lost.append(old if new == old else f"{old} -> {new}")
    fewer = {name: count for name, count in wanted.items() if cases[name] < count}
    return lost + [f"{name}: expected at least {count} cases, found {cases[name]}" for name, count in fewer.items()]


def collect(root: Path = ROOT) -> list[str]:
    """The ids of all tests under `root`, whatever their markers. RuntimeError if a module cannot be collected."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider"]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240)
    if ran.returncode != 0:
        raise RuntimeError(f"expected every test module to be collected: {ran.stdout[-2000:]}")
    return [line for line in ran.stdout.splitlines() if line.startswith("tests/") and "::" in line]
