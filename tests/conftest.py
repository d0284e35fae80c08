"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $RUNYARD_SHARED_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("RUNYARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}: set RUNYARD_SHARED_DATA to a folder that holds them")
    return folder
