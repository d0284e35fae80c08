"""Many rows from one set of outputs, against post-processing row by row."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.config import ScoringConfig
from detector.models.detector import ScoringRow
from detector.models.heads import HeadOutputs
from detector.models.oracle import true_anchor_ious
from detector.models.postprocess import postprocess, postprocess_rows
from tests.detector.models.postprocess_cases import FIELDS, assert_same

TABLE_3 = [ScoringRow(ScoringConfig(confidence="none"))]
TABLE_3 += [ScoringRow(ScoringConfig(alpha=tenths / 10)) for tenths in range(10, -1, -1)]
EVERY_ROW = [*TABLE_3, ScoringRow(ScoringConfig(confidence="class")), ScoringRow(ScoringConfig(), oracle=True)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_case(seed, *, num_classes=3, num_images=2, level_sizes=(60, 25, 8), step=0.0, iou_head=True, mean=-1.0):
    """Random outputs over boxes that overlap a good deal, and ground truth; `step` above 0 rounds logits: ties."""
    generator = torch.Generator().manual_seed(seed)
    anchors, cls_logits, box_deltas, iou_logits = [], [], [], []
    for size in level_sizes:
        corner = torch.rand(size, 2, generator=generator) * 60
        anchors.append(torch.cat([corner, corner + 5 + torch.rand(size, 2, generator=generator) * 40], dim=1))
        logits = torch.randn(num_images, size, num_classes, generator=generator) * 2 + mean
        quality = torch.randn(num_images, size, generator=generator)
        if step > 0:
            logits, quality = (logits / step).round() * step, (quality / step).round() * step
        cls_logits.append(logits)
        box_deltas.append(torch.randn(num_images, size, 4, generator=generator) * 0.2)
        iou_logits.append(quality)
    outputs = HeadOutputs(tuple(cls_logits), tuple(box_deltas), tuple(iou_logits) if iou_head else None)
    valid = torch.rand(num_images, sum(level_sizes), generator=generator) > 0.1
    sizes = torch.randint(50, 90, (num_images, 2), generator=generator)
    truth = [torch.tensor([[5.0, 5, 40, 40], [30, 20, 70, 60]]), *[torch.zeros(0, 4)] * (num_images - 1)]
    return (outputs, tuple(anchors), valid, sizes), truth


def assert_equals_row_by_row(case, truth, rows):
    found = postprocess_rows(*case, rows, truth)
    assert len(found) == len(rows)
    for row, of_row in zip(rows, found, strict=True):
        alone = postprocess_rows(*case, [row], truth)[0] if row.oracle else postprocess(*case, row.scoring)
        for detections, expected in zip(of_row, alone, strict=True):
            assert_same(detections, expected)
            assert all(getattr(detections, name).dtype == getattr(expected, name).dtype for name in FIELDS)
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_classes=st.sampled_from([1, 3, 20]),
    step=st.sampled_from([0.0, 0.5, 2.0, 40.0]),
    iou_head=st.booleans(),
    mean=st.sampled_from([-6.0, -1.0, 30.0]),
    top_k=st.sampled_from([7, 20, 1000]),
    score_threshold=st.sampled_from([0.0, 0.05, 0.5]),
    nms_iou=st.sampled_from([0.0, 0.3, 0.5, 0.6]),
    max_detections=st.sampled_from([1, 15, 100]),
)
def test_equals_row_by_row(seed, num_classes, step, iou_head, mean, top_k, score_threshold, nms_iou, max_detections):
    case, truth = make_case(seed, num_classes=num_classes, step=step, iou_head=iou_head, mean=mean)
    values = {"top_k": top_k, "score_threshold": score_threshold, "nms_iou": nms_iou, "max_detections": max_detections}
    rows = [ScoringRow(replace(row.scoring, **values), row.oracle) for row in EVERY_ROW]
    assert_equals_row_by_row(case, truth, rows)


@pytest.mark.parametrize("seed", range(3))
def test_at_a_realistic_size(seed):
    # Thousands of pairs; one image is deep in ties.
    case, truth = make_case(seed, num_classes=20, level_sizes=(1500, 400, 100), step=0.25 * seed, mean=-4.0)
    found = assert_equals_row_by_row(case, truth, EVERY_ROW)
    assert max(len(detections.scores) for of_row in found for detections in of_row) == 100


def test_rows_of_different_settings_side_by_side():
    case, truth = make_case(3)
    rows = [
        ScoringRow(ScoringConfig(alpha=0.3, top_k=10)),
        ScoringRow(ScoringConfig(alpha=0.3, nms_iou=0.7)),
        ScoringRow(ScoringConfig(alpha=0.9, score_threshold=0.6, max_detections=3)),
        ScoringRow(ScoringConfig(alpha=0.0), oracle=True),
    ]
    assert_equals_row_by_row(case, truth, rows)


def test_nan_logits_and_boxes():
    (outputs, *rest), truth = make_case(4)
    outputs.cls_logits[0][0, 3, 1] = torch.nan
    outputs.iou_logits[1][0, 4] = torch.nan
    outputs.box_deltas[0][0, 7, 2] = torch.nan
    found = assert_equals_row_by_row((outputs, *rest), truth, EVERY_ROW)
    assert all(detections.boxes.isfinite().all() for of_row in found for detections in of_row)


def test_infinite_logits():
    (outputs, *rest), truth = make_case(5)
    outputs.cls_logits[0][0, 3] = torch.tensor([torch.inf, -torch.inf, 0.0])
    outputs.iou_logits[0][0, 3] = torch.inf
    outputs.iou_logits[0][0, 5] = -torch.inf
    assert_equals_row_by_row((outputs, *rest), truth, EVERY_ROW)


def test_half_precision_outputs():
    (outputs, *rest), truth = make_case(6)
    outputs = HeadOutputs(*(tuple(level.bfloat16() for level in part) for part in outputs[:3]))
    assert_equals_row_by_row((outputs, *rest), truth, EVERY_ROW)


def test_no_anchors():
    (outputs, anchors, valid, sizes), truth = make_case(7)
    for found, _ in postprocess_rows(outputs, anchors, valid & False, sizes, EVERY_ROW, truth):
        assert found.boxes.shape == (0, 4)
        assert len(found.scores) == len(found.labels) == len(found.ious) == 0


def test_the_ious_of_an_oracle_row_are_the_true_ones_and_those_of_the_others_predicted():
    case, truth = make_case(8)
    true = torch.cat(true_anchor_ious(case[0].box_deltas, case[1], case[3], truth), dim=1)
    predicted = torch.cat(case[0].iou_logits, dim=1).double().sigmoid().float()
    plain, oracle = postprocess_rows(*case, [TABLE_3[6], EVERY_ROW[-1]], truth)
    for ious, of_row in ((predicted, plain), (true, oracle)):
        for image, found in enumerate(of_row):
            assert torch.equal(found.ious, ious[image, found.anchor_index])
    assert len(oracle[1].scores) == 0  # without ground truth every true IoU is 0


def test_an_oracle_row_needs_ground_truth():
    case, _ = make_case(9)
    with pytest.raises(ValueError, match="ground truth"):
        postprocess_rows(*case, EVERY_ROW)
