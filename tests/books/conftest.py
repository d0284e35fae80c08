"""Fixtures for the tests of findings: the tracking server with faults on demand, stand-in work, and a finished run."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import ScoringConfig
from runyard.driver.run import run_one
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import rows, spec, work  # noqa: F401
from tests.runyard.tracking.conftest import (  # noqa: F401
    _created_database,
    _server,
    empty_database,
    impatient,
    server,
    tracking_uri,
)


@pytest.fixture(scope="session")
def finished(
    make_tiny_spec: Callable[[Path], ExperimentSpec], empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrialResult:
    """A run of three steps, trained in this process and evaluated with alpha 0.5: copy its storage to change it."""
    storage = tmp_path_factory.mktemp("finished") / "runs"
    storage.mkdir()
    shutil.copy(empty_store, storage / "mlflow.db")
    tiny = make_tiny_spec(storage)
    optim = replace(tiny.optim, epochs=1, milestones=(), warmup_steps=1)
    return run_one(replace(tiny, optim=optim, scoring=ScoringConfig(score_threshold=0.001)), launcher="local")
