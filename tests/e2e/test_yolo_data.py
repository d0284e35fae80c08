"""A run on YOLO's text labels, from folder to metrics, against the same data in COCO's format."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import effective_metrics
from runyard.training.local import main
from tests.yolo_copies import copy_as_yolo


def test_a_run_on_yolo_labels_equals_the_run_on_coco_bit_for_bit(
    tiny_spec: ExperimentSpec, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo = copy_as_yolo(tiny_data, tmp_path / "yolo")
    assert tiny_spec.runtime.storage is not None
    curves, metrics = [], []
    for name, data, format in (("coco", tiny_data, "auto"), ("yolo", yolo, "auto"), ("named", yolo, "yolo")):
        spec = replace(
            tiny_spec,
            source=replace(tiny_spec.source, data=data, format=format),  # type: ignore[arg-type]
            runtime=replace(tiny_spec.runtime, name=name),
        )
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(to_dict(spec)))
        assert main([str(file)]) == 0
        metrics.append(json.loads(capsys.readouterr().out))
        curves.append(effective_metrics(RunFolder(tiny_spec.runtime.storage / name).journal))
    losses = [{key: curve for key, curve in run.items() if key.startswith("train/loss")} for run in curves]
    assert len(losses[0]["train/loss"]) == 6
    assert losses[0] == losses[1] == losses[2]
    # AP by size is left out: COCO's areas are those of masks, which YOLO's format does not have.
    compared = ["val/AP", "val/AP50", "val/AR100", "val/images", "val/detections", "val/pearson_confidence"]
    assert [{name: run.get(name) for name in compared} for run in metrics[1:]] == [
        {name: metrics[0].get(name) for name in compared}
    ] * 2
