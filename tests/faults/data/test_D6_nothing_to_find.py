"""D6: images, batches, splits and classes without a box."""

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from detector.errors import DatasetError
from runyard.runs.prepare import prepare
from runyard.tracking.journal import effective_metrics


def test_D6_images_without_boxes_are_not_trained_on_but_evaluated(data, spec_of: Callable, train_on: Callable) -> None:
    data.train.add("bare.png", boxes=[])
    data.val.add("bare.png", boxes=[])
    outcome = train_on(spec_of(data))
    assert outcome.metrics["val/images"] == 2
    curves = effective_metrics(outcome.folder.journal)
    assert [step for step, _ in curves["train/loss"]] == [1]  # two images make one step, the bare one none
    assert all(math.isfinite(value) for name in curves for _, value in curves[name])


def test_D6_a_batch_without_a_positive_anchor_has_a_finite_loss(data, spec_of: Callable, train_on: Callable) -> None:
    """A box of a pixel between anchors of 32 px and more: with low-quality matches off nothing is positive."""
    for split in (data.train, data.val):
        for annotation in split.content["annotations"]:
            annotation["bbox"] = [31, 31, 1, 1]
    spec = spec_of(data)
    outcome = train_on(replace(spec, loss=replace(spec.loss, low_quality_matches=False)))
    curves = effective_metrics(outcome.folder.journal)
    assert curves["train/loss_box"] == [(1, 0.0)]
    assert math.isfinite(curves["train/loss"][0][1])


def test_D6_a_split_without_boxes(data, spec_of: Callable, train_on: Callable) -> None:
    data.val.content["annotations"].clear()
    outcome = train_on(spec_of(data))
    metrics = json.loads(outcome.folder.evaluation(outcome.prepared.spec.scoring_hash).metrics.read_text())
    assert "val/AP" not in metrics  # not available, and not -1
    assert metrics["val/images"] == 1
    data.train.content["annotations"].clear()
    spec = spec_of(data, train_limit=1)
    with pytest.raises(DatasetError, match="no image to train on: of 2 images, 0 have a usable box"):
        prepare(replace(spec, runtime=replace(spec.runtime, name="without-boxes")))


def test_D6_a_class_absent_from_validation_is_not_averaged(data, spec_of: Callable, train_on: Callable) -> None:
    data.train.add("dog.png", boxes=[{"category_id": 2, "bbox": [9, 9, 20, 20]}])
    outcome = train_on(spec_of(data))
    assert outcome.metrics["val/AP"] == pytest.approx(outcome.metrics["val/class_AP/cat"])
    assert "val/class_AP/dog" not in outcome.metrics
