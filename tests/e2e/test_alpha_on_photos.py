"""Tables 3 and 4 as a user runs them on photographs: every row against direct inference and against pycocotools."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.checkpoint import load_checkpoint
from detector.data.cache import load_dataset
from detector.evaluation.coco_ap import coco_average_precision
from detector.models.build import build_detector
from detector.predictor import Predictor
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import detect
from runyard.scoring.results import load_sweep
from runyard.spec import ExperimentSpec, from_dict
from runyard.training.local import LocalContext

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "--model.backbone.name": "resnet18",
    "--model.backbone.weights": "none",
    "--model.fpn-channels": "32",
    "--model.tower-depth": "1",
    "--model.tower-norm": "group",
    "--optim.optimizer": "adamw",
    "--optim.learning-rate": "1e-3",
    "--optim.reference-batch-size": "8",
    "--optim.batch-size": "8",
    "--optim.epochs": "1",
    "--optim.warmup-steps": "5",
    "--data.train-limit": "64",
    "--data.val-limit": "40",
    "--data.short-side-px": "160",
    "--data.long-side-px": "224",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def run(entry_point: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "experiments" / entry_point), "--launcher", "local", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("name", ["aquarium", "bccd"])
def test_every_row_is_direct_inference_and_pycocotools(shared_data: Path, tmp_path: Path, name: str) -> None:
    options = [text for option in SMALL.items() for text in option] + ["--optim.milestones"]
    storage = tmp_path / "runs"
    run("coco_main.py", "--data", str(shared_data / name), "--storage", str(storage), *options)
    (trained,) = (path.parent for path in storage.glob("*/spec.json"))

    run("ablate_alpha.py", "--checkpoint-run", str(trained), "--storage", str(storage))
    (folder,) = (path.parent for path in storage.glob("sweeps/*/trials.json"))
    sweep = load_sweep(folder)
    assert [result.row for result in sweep.results] == ["none", *(f"{a / 10:.1f}" for a in range(10, 0, -1)), "0"]

    spec: ExperimentSpec = from_dict(json.loads((trained / "spec.json").read_text()))
    dataset = load_dataset(RunFolder(trained).val_data(spec.validation_hash))
    model = build_detector(spec.model, spec.loss, len(dataset.categories))
    load_checkpoint(final_checkpoint(RunFolder(trained)), model)
    predictor = Predictor(model, torch.device("cpu"))
    for result in sweep.results:
        table = detect(predictor, dataset, spec.data, result.spec.scoring, LocalContext(use_gpu=False), batch_size=8)
        stored = result.load_detections()[1]
        assert len(table) == len(stored)
        np.testing.assert_allclose(table.scores, stored.scores, rtol=0, atol=1e-6)
        arbiter = coco_average_precision(dataset, table, backend="pycocotools").summary
        for metric, value in arbiter.items():
            assert (result.metrics or {}).get(f"val/{metric}") == (value and pytest.approx(value, abs=1e-6)), metric
