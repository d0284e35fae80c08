"""Exemptions from the formatter and the linter only become fewer."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("detector", "platform", "experiments", "benchmarks", "tests")

# Put together here so that this file does not hold what it counts. Lower a limit when its count has fallen.
LIMITS = {"# fmt" + ": skip": 71, "# noqa" + ": E402": 42}


def count(exemption: str) -> int:
    """Lines of the tree that hold an exemption; spaces in it are of no account."""
    pattern = re.compile(re.escape(exemption).replace(r"\ ", r"\s*"))
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    assert files
    return sum(len(pattern.findall(file.read_text())) for file in files)


@pytest.mark.parametrize("exemption", LIMITS)
def test_exemptions_are_not_more_than_before(exemption):
    found = count(exemption)
    assert found <= LIMITS[exemption], f"expected at most {LIMITS[exemption]}, found {found}: write it without"
