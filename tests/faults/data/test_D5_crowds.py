"""D5: crowds are not trained on, and in AP they are what pycocotools makes of them; a missing flag means no crowd."""

from collections.abc import Callable

import numpy as np
import pytest

from detector.data.cache import load_dataset
from detector.data.epoch_plan import trainable_images
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.results import DetectionTable

CROWD = {"category_id": 1, "bbox": [4, 4, 50, 50], "iscrowd": 1, "area": 2500}


@pytest.fixture
def outcome(data, spec_of: Callable, train_on: Callable):
    """A run on a data set with a crowd alone, one beside a box, and one beside boxes in validation."""
    data.train.add("crowd-alone.png", boxes=[CROWD])
    data.train.add("crowd-and-box.png", boxes=[CROWD, {"category_id": 2, "bbox": [30, 30, 9, 9]}])
    data.val.add("crowd.png", boxes=[CROWD, {"category_id": 1, "bbox": [0, 0, 12, 12], "iscrowd": 0}])
    return train_on(spec_of(data))


def test_D5_crowds_are_not_trained_on(outcome) -> None:
    train = load_dataset(outcome.folder.train_data)
    assert train.is_crowd.tolist() == [False, False, True, True, False]
    assert trainable_images(train, outcome.prepared.spec.data).tolist() == [0, 1, 3]
    boxes, labels = train.training_boxes(3)
    assert (boxes.tolist(), labels.tolist()) == ([[30, 30, 39, 39]], [1])


def test_D5_in_AP_they_are_pycocotools(outcome) -> None:
    val = load_dataset(outcome.folder.val_data(outcome.prepared.spec.validation_hash))
    inside_crowd, exact, wrong = [6, 6, 20, 20], [0, 0, 12, 12], [50, 0, 9, 9]
    table = DetectionTable(
        image_index=np.array([1, 1, 1, 0]),
        labels=np.zeros(4, dtype=np.int64),
        boxes_xywh=np.array([inside_crowd, exact, wrong, [8, 8, 30, 30]], dtype=np.float64),
        scores=np.array([0.9, 0.8, 0.7, 0.95]),
    )
    ours, theirs = (coco_average_precision(val, table, backend=name).summary for name in ("hotcoco", "pycocotools"))
    assert ours == pytest.approx(theirs, abs=1e-10)
    assert ours["AP"] == pytest.approx(1.0)  # a detection in the crowd counts for nothing, the wrong one ranks last
