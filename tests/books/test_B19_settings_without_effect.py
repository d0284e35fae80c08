"""B19: `runyard evaluate` refuses settings that the chosen protocol would ignore."""

import json
from pathlib import Path
from typing import Any

import pytest

from detector.errors import ConfigError
from runyard.scoring.evaluate import evaluate_files

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "fish"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
}
FOUND = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"protocol": "coco", "offset": 0.0}, "offset: has no effect under protocol coco"),
        ({"protocol": "coco", "offset": 1.0}, "offset: has no effect under protocol coco"),
        ({"protocol": "voc07", "backend": "hotcoco", "offset": 1.0}, "backend: has no effect under protocol voc07"),
        ({"protocol": "voc12", "backend": "pycocotools", "offset": 0.0}, "backend: has no effect .* voc12"),
        ({"protocol": "voc07", "max_detections": 100, "offset": 1.0}, "max_detections: has no effect .* voc07"),
    ],
)
def test_B19_a_setting_without_effect_is_refused(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(TRUTH))
    found.write_text(json.dumps(FOUND))
    with pytest.raises(ConfigError, match=named):
        evaluate_files(truth, found, **settings)
