"""B29: a box of 1e308 is one clear line, not an overflow in NumPy."""

import json
import warnings
from pathlib import Path

import pytest

from detector.errors import DatasetError, ResultFileError
from runyard.scoring.evaluate import evaluate_files

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "fish"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
}
FOUND = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}


@pytest.mark.parametrize("box", [[0, 0, 1e308, 1e308], [1e308, 0, 1, 1], [-1e308, 0, 1e308, 1], [0, 0, 1e10, 1]])
def test_B29_a_huge_box_is_one_clear_line(tmp_path: Path, box: list[float]) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        truth.write_text(json.dumps(TRUTH))
        found.write_text(json.dumps([FOUND, {**FOUND, "bbox": box}]))
        with pytest.raises(ResultFileError, match=r"1 of 2 rows .*row 1: bbox .* does not lie within 1,000,000,000 px"):
            evaluate_files(truth, found)
        found.write_text(json.dumps([FOUND]))
        truth.write_text(json.dumps({**TRUTH, "annotations": [{**TRUTH["annotations"][0], "bbox": box}]}))
        with pytest.raises(DatasetError, match=r"annotations\.bbox: 1 of 1 must lie within 1,000,000,000 px"):
            evaluate_files(truth, found)
