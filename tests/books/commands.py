"""The programs of the experiments, run in processes of their own."""

import os
from pathlib import Path

from tests.processes import Forked

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments: str | Path) -> Forked:
    """A program as for `python`: a script with its arguments, or -m and a module's name with its arguments."""
    return Forked([str(argument) for argument in arguments], os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"})


def experiment(name: str, *arguments: str | Path) -> Forked:
    """A script of experiments/."""
    return start(ROOT / "experiments" / name, *arguments)


def output_of(process: Forked, status: int, timeout_s: float = 120.0) -> str:
    """Output of a program that ends with this exit status."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == status, output
    return output
