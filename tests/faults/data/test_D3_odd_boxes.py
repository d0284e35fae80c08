"""D3: boxes that cannot be are refused by annotation id; odd ones are clipped or dropped, counted, train finitely."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from detector.boxes import pairwise_iou
from detector.errors import DatasetError
from runyard.cli import main
from runyard.runs.prepare import prepare


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([1, 2, -3, 4], "must not have a negative width or height"),
        ([30, 30, -20, -20], "must not have a negative width or height"),  # corners swapped
        ([float("nan"), 2, 3, 4], "holds the literal NaN at line 1, column"),
        ([float("inf"), 2, 3, 4], "holds the literal Infinity at line 1, column"),
        ([1e308, 2, 1e308, 4], "must lie within 1,000,000,000 px"),
        ([1, 2, 1e200, 1e200], "must lie within 1,000,000,000 px"),
        ([1, 2, 3], "must be a list of four numbers"),
    ],
)
def test_D3_boxes_that_cannot_be_are_refused(data, spec_of: Callable, bbox: list[float], problem: str) -> None:
    data.train.add("odd.png", boxes=[{"category_id": 1, "bbox": [1, 1, 9, 9]}, {"category_id": 1, "bbox": bbox}])
    with pytest.raises(DatasetError) as caught:
        prepare(spec_of(data))
    assert problem in str(caught.value)
    assert "instances_train.json" in str(caught.value)
    assert "literal" in problem or "id 4 (" in str(caught.value)


ODD: dict[str, list[Any]] = {
    "no width": [5, 5, 0, 9],
    "no height": [5, 5, 9, 0],
    "a point": [5, 5, 0, 0],
    "outside": [100, 100, 5, 5],
    "negative corner": [-10, -10, 30, 30],
    "partly outside": [50, 50, 40, 40],
    "larger than the image": [-100, -100, 500, 500],
    "a sliver": [63.5, 3, 20, 20],
    "huge": [-9e8, -9e8, 1e9, 1e9],
}


def test_D3_odd_boxes_are_counted_and_train_finitely(
    data, spec_of: Callable, train_on: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [{"category_id": 1 + number % 2, "bbox": box} for number, box in enumerate(ODD.values())]
    data.train.add("odd.png", boxes=boxes)
    data.val.add("odd.png", boxes=boxes)
    crowded = [{"category_id": 1, "bbox": [number % 40, number // 40, 20, 20]} for number in range(1000)]
    data.train.add("crowded.png", boxes=crowded)
    data.val.add("crowded.png", boxes=crowded)
    spec = spec_of(data)
    outcome = train_on(spec)
    losses = [outcome.metrics[name] for name in outcome.metrics if "loss" in name]
    assert all(map(math.isfinite, losses))
    assert outcome.metrics["val/images"] == 3
    assert 0 <= outcome.metrics["val/AP"] <= 1
    capsys.readouterr()
    assert main(["doctor", "--data", str(data.root), "--storage", str(data.root.parent)]) == 0
    odd = "3 boxes without area, 1 outside their image, 5 partly outside; dropped 5"
    assert capsys.readouterr().out.count(odd) == 2


def test_D3_the_iou_of_two_empty_boxes_is_zero() -> None:
    empty = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 9.0, 5.0]])
    assert pairwise_iou(empty, empty).tolist() == [[0, 0], [0, 0]]
