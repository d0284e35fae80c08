"""B23: ground truth whose images state no size says nothing about boxes outside their image."""

import json
import logging
from pathlib import Path

import pytest

from runyard.scoring.evaluate import evaluate_files

FOUND = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]


@pytest.mark.parametrize(("size", "warned"), [({}, False), ({"width": 15, "height": 15}, True)])
def test_B23_unknown_sizes_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: dict[str, int], warned: bool
) -> None:
    truth = {
        "images": [{"id": 1, **size}],
        "categories": [{"id": 1, "name": "fish"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    with caplog.at_level(logging.WARNING):
        report = evaluate_files(tmp_path / "truth.json", tmp_path / "found.json")
    assert report["metrics"]["AP"] == pytest.approx(1.0)
    assert ("partly outside" in caplog.text) == warned
    assert bool(report["warnings"]) == warned
