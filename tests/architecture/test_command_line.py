"""The command line is frozen in a file: a new option is a decision, and so is a changed type or default."""

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.command_line import Help, parse_help

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ROOT / "tests" / "golden" / "command_line.txt"
GENERATOR = ROOT / "tests" / "golden" / "command_line.py"

PAGE = """usage: program [-h] [OPTIONS] PATH [{m:a,m:b}]

Text with --options of no account.

╭─ positional arguments ───────────────────────────────╮
│ PATH                  Folder of a run. (required)    │
╰──────────────────────────────────────────────────────╯
╭─ options ────────────────────────────────────────────╮
│ -h, --help            show this help message and exit│
│ --alpha {None}|FLOAT  Exponent (0 to 1). (default:   │
│                       None)                          │
│ --vary STR            (repeatable)                   │
│ --name {one,two,                                     │
│ three}                                               │
│                       (default: one)                 │
╰──────────────────────────────────────────────────────╯
╭─ model options ──────────────────────────────────────╮
│ The network.                                         │
│ ──────────────────────────────────────────────────── │
│ --model.depth, --model.no-depth                      │
│       Two words. (default: True)                     │
╰──────────────────────────────────────────────────────╯
╭─ subcommands ────────────────────────────────────────╮
│ (default: m:a)                                       │
│   • m:a     The first.                               │
│   • m:b     The second.                              │
╰──────────────────────────────────────────────────────╯
"""


@pytest.mark.processes
def test_the_command_line_is_the_frozen_one():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    ran = subprocess.run(
        [sys.executable, GENERATOR], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    difference = list(
        difflib.unified_diff(FROZEN.read_text().splitlines(), ran.stdout.splitlines(), "frozen", "today", n=1)
    )
    assert difference == [], (
        "expected the options of tests/golden/command_line.txt, found others: a new option is a decision."
        " Regenerate with: python tests/golden/command_line.py > tests/golden/command_line.txt"
    )


def test_a_help_page_is_read_in_full():
    assert parse_help(PAGE) == Help(
        options=(
            "PATH (required)",
            "--alpha {None}|FLOAT = None",
            "--vary STR (repeatable)",
            "--name {one,two,three} = one",
            "--model.depth, --model.no-depth = True",
        ),
        commands=("m:a", "m:b"),
    )


def test_every_command_is_in_the_file():
    sections = re.findall(r"^\[(.+)\]\n(?!\n)", FROZEN.read_text(), flags=re.MULTILINE)
    scripts = {
        f"experiments/{file.name}" for file in (ROOT / "experiments").glob("*.py") if "__main__" in file.read_text()
    }
    assert scripts <= set(sections)
    assert {"runyard evaluate", "python -m benchmarks", "python -m runyard.training.local"} <= set(sections)
    assert len(sections) == len(set(sections))
