"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

# Before anything imports ray or mlflow: no token file in the home folder, no reports to anyone, and Ray Train's
# controller looks at its workers often enough that a report costs 0.1 s, not 2 s.
os.environ |= {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: $RUNYARD_SHARED_DATA, else `shared/data` beside the repository."""
    folder = Path(os.environ.get("RUNYARD_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}: set RUNYARD_SHARED_DATA to a folder that holds them")
    return folder
