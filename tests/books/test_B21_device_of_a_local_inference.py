"""B21: a finished run's outputs are stored on the device that its training was asked to use."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from detector.models.detector import ScoringRow
from detector.rescoring.store import CandidateStore
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult
from runyard.training.launch import launch_inference


def test_B21_without_gpus_for_its_workers_a_local_inference_runs_on_the_cpu(
    finished: TrialResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(shutil.copytree(finished.run.root, tmp_path / "run"))
    spec = replace(finished.spec, runtime=replace(finished.spec.runtime, gpus_per_worker=0))
    row = ScoringRow(replace(spec.scoring, alpha=0.25))
    used: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    launch_inference(spec, folder, "local", (row,))
    assert used == []
    assert not CandidateStore.open(folder.candidates(spec.validation_hash)).missing((row,))
