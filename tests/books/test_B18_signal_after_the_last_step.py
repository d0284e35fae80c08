"""B18: a signal after the last step of a training ends the sweep, and a finished training keeps its metrics."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from detector.models.detector import ScoringRow
from runyard.driver.run import run_sweep
from runyard.failures import Terminated
from runyard.grid import expand
from runyard.reports.report import Report
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import locate
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import last_status
from runyard.training import local
from runyard.training.launch import launch_inference
from runyard.training.worker import train


def test_B18_a_signal_after_the_last_step_of_a_training_starts_no_other_job(
    rows: dict[str, ExperimentSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[RunFolder] = []
    original = local.launch

    def signalled(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow] = ()) -> dict[str, Any] | None:
        metrics = original(spec, folder, rows)
        trained.append(folder)
        if len(trained) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    monkeypatch.setattr(local, "launch", signalled)
    trials = expand({"baseline": rows["baseline"], "none": rows["none"]})

    def sweep() -> None:
        run_sweep(trials, "table", launcher="local", finish=lambda result: Report())

    with pytest.raises(Terminated):
        sweep()
    (first,) = trained
    assert not first.stop_request.exists()
    assert len(first.evaluations()) == 1

    sweep()
    assert len(trained) == 2, "the finished training is not repeated"
    assert last_status(first.journal) == "FINISHED"


def test_B18_the_plain_launcher_completes_a_run_that_was_interrupted_after_its_last_step(
    spec: ExperimentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(*arguments: Any) -> Any:
        metrics = train(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return metrics

    (tmp_path / "spec.json").write_text(json.dumps(to_dict(spec)))
    monkeypatch.setattr(local, "train", signalled)
    assert local.main([str(tmp_path / "spec.json")]) == 143
    _, folder = locate(spec)
    assert last_status(folder.journal) == "KILLED"
    capsys.readouterr()
    assert local.main([str(tmp_path / "spec.json")]) == 0
    (evaluation,) = folder.evaluations()
    assert json.loads(capsys.readouterr().out) == json.loads(evaluation.metrics.read_text())
    assert last_status(folder.journal) == "FINISHED"


def test_B18_a_finished_runs_inference_withdraws_an_earlier_request(finished: TrialResult, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(finished.run.root, tmp_path / "run"))
    folder.stop_request.touch()
    launch_inference(finished.spec, folder, "local", (ScoringRow(finished.spec.scoring),))
    assert not folder.stop_request.exists()
