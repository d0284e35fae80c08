"""B27: where the checkpoints of a finished run were removed, the message names a way that works."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detector.errors import CheckpointError
from runyard.driver.run import run_one
from runyard.reports.report import Report
from runyard.runs.finished import finished_run
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import Work

MESSAGE = "checkpoints were removed.* another --storage or --name, or remove the run's folder"


@pytest.fixture
def kept(finished: TrialResult, tmp_path: Path) -> tuple[ExperimentSpec, RunFolder]:
    """A finished run whose checkpoints were removed; its metrics are left."""
    storage = Path(shutil.copytree(finished.run.root.parent, tmp_path / "runs"))
    folder = RunFolder(storage / finished.run.root.name)
    for checkpoint in folder.checkpoints():
        shutil.rmtree(checkpoint)
    return replace(finished.spec, runtime=replace(finished.spec.runtime, storage=storage)), folder


def run(spec: ExperimentSpec, work: Work) -> TrialResult:
    return run_one(spec, launcher="local", finish=lambda result: Report(), do=work)


def test_B27_the_metrics_of_a_run_without_checkpoints_stay(kept: tuple[ExperimentSpec, RunFolder], work: Work) -> None:
    spec, _ = kept
    assert run(spec, work).metrics is not None
    assert work.done == []


def test_B27_another_scoring_of_a_run_without_checkpoints_is_refused_before_any_job(
    kept: tuple[ExperimentSpec, RunFolder], work: Work
) -> None:
    spec, folder = kept
    with pytest.raises(CheckpointError, match=MESSAGE):
        run(replace(spec, scoring=replace(spec.scoring, alpha=0.1)), work)
    with pytest.raises(CheckpointError, match=MESSAGE):
        finished_run(folder.root)
    assert work.done == []


@pytest.mark.parametrize("remedy", ["another name", "another storage", "the folder removed"])
def test_B27_each_remedy_trains_the_run_again(
    kept: tuple[ExperimentSpec, RunFolder], work: Work, tmp_path: Path, remedy: str
) -> None:
    spec, folder = kept
    if remedy == "the folder removed":
        shutil.rmtree(folder.root)
    elif remedy == "another name":
        spec = replace(spec, runtime=replace(spec.runtime, name="again"))
    else:
        (tmp_path / "other").mkdir()
        shutil.copy(folder.root.parent / "mlflow.db", tmp_path / "other" / "mlflow.db")
        spec = replace(spec, runtime=replace(spec.runtime, storage=tmp_path / "other"))
    trained = run(replace(spec, scoring=replace(spec.scoring, alpha=0.1)), work)
    assert len(work.done) == 1
    assert finished_run(trained.run.root).training_hash == spec.training_hash
