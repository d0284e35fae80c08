"""The list of scenarios is complete, and what it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {"F": 10, "S": 7, "D": 12, "N": 8, "H": 5}


def test_every_scenario_has_a_row_and_every_named_test_exists() -> None:
    text = (ROOT / "tests/faults/README.md").read_text()
    rows = re.findall(r"^\| ([FSDNH]\d+) \|", text, flags=re.MULTILINE)
    assert rows == [f"{letter}{number}" for letter, count in SCENARIOS.items() for number in range(1, count + 1)]
    missing = [path for path in re.findall(r"`(tests/[^`]+)`", text) if not (ROOT / path).is_file()]
    assert missing == []
