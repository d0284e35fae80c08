"""The true IoU in the predicted one's place."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.config import ScoringConfig
from detector.data.batching import collate
from detector.data.samples import Category, Dataset
from detector.data.transforms import Sample
from detector.evaluation.correlation import true_ious
from detector.evaluation.results import DetectionTable
from detector.models.box_coder import encode
from detector.models.detector import ScoringRow
from detector.models.heads import HeadOutputs
from detector.models.oracle import true_anchor_ious
from detector.models.postprocess import postprocess_rows
from detector.rescoring.oracle import truth_boxes, with_truth


def make_dataset(boxes_xywh, crowd=(), difficult=(), size=(100, 200)):
    count = len(boxes_xywh)
    return Dataset(
        name="made",
        categories=(Category(1, "a"), Category(2, "b")),
        image_paths=(Path("/made/0.jpg"),),
        image_ids=(0,),
        image_sizes=np.array([size], dtype=np.int64),
        offsets=np.array([0, count], dtype=np.int64),
        boxes_xywh=np.array(boxes_xywh, dtype=np.float64).reshape(count, 4),
        labels=np.zeros(count, dtype=np.int64),
        areas=np.ones(count),
        is_crowd=np.isin(np.arange(count), crowd),
        is_difficult=np.isin(np.arange(count), difficult),
    )


def make_outputs(boxes, p, q=None):
    """One image and level whose anchors regress to `boxes`."""
    boxes = torch.tensor(boxes, dtype=torch.float32)
    anchors = boxes + torch.tensor([1.0, -1.0, 2.0, 3.0])
    iou_logits = None if q is None else (torch.tensor([q]).logit(),)
    outputs = HeadOutputs((torch.tensor([p]).logit(),), (encode(anchors, boxes)[None],), iou_logits)
    return outputs, (anchors,), torch.ones(1, len(boxes), dtype=torch.bool), torch.tensor([[1000, 1000]])


def oracle_detections(outputs, anchors, valid, sizes, scoring, truth):
    return postprocess_rows(outputs, anchors, valid, sizes, [ScoringRow(scoring, oracle=True)], truth)[0]


def test_truth_is_scaled_per_axis_without_crowds():
    dataset = make_dataset([[10, 20, 30, 40], [0, 0, 5, 5], [50, 60, 10, 10]], crowd=[1], difficult=[2])
    boxes = truth_boxes(dataset, 0, (50, 300))  # half as high, one and a half times as wide
    assert boxes.dtype == torch.float32
    assert boxes.tolist() == [[15, 10, 60, 30], [75, 30, 90, 35]]
    assert truth_boxes(make_dataset([]), 0, (50, 300)).shape == (0, 4)


def test_the_best_box_of_any_class_counts():
    case = make_outputs([[0, 0, 10, 10], [50, 50, 60, 60], [0, 5, 10, 15]], [[0.5, 0.5]] * 3)
    truth = [torch.tensor([[0.0, 0, 10, 10], [0, 5, 10, 20]])]
    (ious,) = true_anchor_ious(case[0].box_deltas, case[1], case[3], truth)
    torch.testing.assert_close(ious, torch.tensor([[1.0, 0.0, 2 / 3]]))
    (none,) = true_anchor_ious(case[0].box_deltas, case[1], case[3], [torch.zeros(0, 4)])
    assert none.tolist() == [[0.0, 0.0, 0.0]]


def test_by_hand():
    # p = 0.81 and 0.36 with true IoU 0.5 and 1: sqrt(0.405) = 0.636 and 0.6; the predicted IoU has no say.
    case = make_outputs([[0, 0, 10, 10], [50, 50, 60, 60]], [[0.81], [0.36]], q=[0.01, 0.99])
    (found,) = oracle_detections(*case, ScoringConfig(), [torch.tensor([[0.0, 0, 10, 20], [50, 50, 60, 60]])])
    assert found.anchor_index.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.405**0.5, 0.6]))
    torch.testing.assert_close(found.ious, torch.tensor([0.5, 1.0]))


def test_the_true_iou_chooses_the_anchors_too():
    case = make_outputs([[0, 0, 10, 10], [50, 50, 60, 60]], [[0.9], [0.3]], q=[0.9, 0.1])
    truth = [torch.tensor([[50.0, 50, 60, 60]])]
    (found,) = oracle_detections(*case, ScoringConfig(top_k=1), truth)
    assert found.anchor_index.tolist() == [1]


def test_without_ground_truth_nothing_is_found():
    case = make_outputs([[0, 0, 10, 10]], [[0.9]], q=[0.9])
    (found,) = oracle_detections(*case, ScoringConfig(score_threshold=0.0), [torch.zeros(0, 4)])
    assert len(found.scores) == 0


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_true_iou_of_the_correlation(seed):
    random = np.random.default_rng(seed)
    dataset = make_dataset(random.uniform(0, 60, (6, 4)) + 1, crowd=[2], size=(120, 150))
    corners = np.sort(random.uniform(0, 100, (20, 2, 2)), axis=1).reshape(20, 4)
    resized = (96, 120)  # 0.8 of both
    case = make_outputs((corners * 0.8).tolist(), [[0.5]] * 20)
    (ious,) = true_anchor_ious(case[0].box_deltas, case[1], torch.tensor([resized]), [truth_boxes(dataset, 0, resized)])
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    table = DetectionTable(np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64), xywh, np.ones(20))
    np.testing.assert_allclose(ious[0].numpy(), true_ious(dataset, table), atol=1e-5)


def test_a_batch_takes_the_truth_for_its_boxes():
    dataset = make_dataset([[10, 20, 30, 40], [0, 0, 5, 5], [50, 60, 10, 10]], crowd=[1], difficult=[2])
    batch = collate([Sample(torch.zeros(3, 50, 300, dtype=torch.uint8), torch.zeros(0, 4), torch.zeros(0), 0)], 32)
    found = with_truth(batch, dataset)
    assert found.valid.tolist() == [[True, True]]
    assert torch.equal(found.boxes[0], truth_boxes(dataset, 0, (50, 300)))
    assert found.labels.dtype == torch.int64
    assert with_truth(batch, make_dataset([])).boxes.shape == (1, 0, 4)
