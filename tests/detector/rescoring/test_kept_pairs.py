"""The union of many rows' detections, against `postprocess` row by row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.boxes import pairwise_iou
from detector.config import ScoringConfig
from detector.models.postprocess import postprocess
from detector.models.retinanet import HeadOutputs
from detector.rescoring import kept_pairs as module
from detector.rescoring.kept_pairs import ScoringRow, survivors
from detector.rescoring.oracle import oracle_detections

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
    found = survivors(*case, rows, truth)
    for number, row in enumerate(rows):
        direct = oracle_detections(*case, row.scoring, truth) if row.oracle else postprocess(*case, row.scoring)
        for image, (detections, of_image) in enumerate(zip(direct, found, strict=True)):
            of_row = (of_image.rows >> number) & 1 == 1
            order = (detections.anchor_index * 1000 + detections.labels).argsort()
            assert of_image.anchor_index[of_row].tolist() == detections.anchor_index[order].tolist()
            assert of_image.labels[of_row].tolist() == detections.labels[order].tolist()
            assert torch.equal(of_image.boxes[of_row], detections.boxes[order])
            flat = torch.cat(case[0].cls_logits, dim=1)[image].float()
            expected = flat[of_image.anchor_index, of_image.labels]
            assert torch.equal(of_image.cls_logits, expected)
            if row.oracle:
                assert torch.equal(of_image.true_ious[of_row], detections.ious[order])
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
    first_pairs=st.sampled_from([1, 20, 100_000]),
)
def test_equals_row_by_row(
    seed, num_classes, step, iou_head, mean, top_k, score_threshold, nms_iou, max_detections, first_pairs
):
    case, truth = make_case(seed, num_classes=num_classes, step=step, iou_head=iou_head, mean=mean)
    values = {"top_k": top_k, "score_threshold": score_threshold, "nms_iou": nms_iou, "max_detections": max_detections}
    rows = [ScoringRow(replace(row.scoring, **values), row.oracle) for row in EVERY_ROW]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_FIRST_PAIRS", first_pairs)
        patch.setattr(module, "_SAMPLE", 64)
        assert_equals_row_by_row(case, truth, rows)


@pytest.mark.parametrize("seed", range(3))
def test_at_a_realistic_size(seed):
    # Thousands of pairs, of which a row looks at a part; one image is deep in ties.
    case, truth = make_case(seed, num_classes=20, level_sizes=(1500, 400, 100), step=0.25 * seed, mean=-4.0)
    found = assert_equals_row_by_row(case, truth, EVERY_ROW)
    assert all(100 < len(of_image.rows) < 100 * len(EVERY_ROW) for of_image in found)


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
    assert_equals_row_by_row((outputs, *rest), truth, EVERY_ROW)


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
    (found, _) = survivors(outputs, anchors, valid & False, sizes, EVERY_ROW, truth)
    assert found.boxes.shape == (0, 4)
    assert len(found.rows) == len(found.cls_logits) == len(found.true_ious) == 0


def test_every_survivor_has_a_row_and_a_place_of_its_own():
    case, _ = make_case(8)
    for found in survivors(*case, TABLE_3):
        assert (found.rows > 0).all()
        assert found.true_ious is None
        keys = found.anchor_index * 3 + found.labels
        assert (keys.diff() > 0).all()
        bounds = torch.tensor([60, 85, 93])
        assert torch.equal(found.level, torch.bucketize(found.anchor_index, bounds, right=True))


def test_an_oracle_row_needs_ground_truth():
    case, _ = make_case(9)
    with pytest.raises(ValueError, match="ground truth"):
        survivors(*case, EVERY_ROW)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.6, 0.7, 1.0])
def test_overlaps_are_those_of_best_pairs_to_the_bit(threshold):
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 6, (300, 2), generator=generator).float()  # IoUs that hit thresholds exactly
    whole = torch.cat([corner, corner + torch.randint(0, 6, (300, 2), generator=generator)], dim=1)
    uneven = torch.rand(300, 4, generator=generator).sort(dim=1).values[:, [0, 1, 2, 3]] * 37.7
    for boxes in (whole, uneven):
        expected = pairwise_iou(boxes, boxes).double() > threshold
        with np.errstate(all="raise", under="ignore"):
            overlaps = module._Overlaps(boxes, threshold)
            found = np.stack([overlaps.of(place) for place in range(len(boxes))])
        assert np.array_equal(found, expected.numpy())
