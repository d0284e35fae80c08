import numpy as np
import pytest
from pycocotools import mask

from detector.evaluation import overlaps
from detector.evaluation.overlaps import best_of_each_detection, pair_ious, pairs_within_groups


def test_pairs_are_those_of_equal_group_whatever_the_chunks(monkeypatch):
    random = np.random.default_rng(0)
    detection_group, truth_group = random.integers(0, 9, 40), random.integers(2, 12, 25)
    expected = [(d, k) for d in range(40) for k in range(25) if detection_group[d] == truth_group[k]]
    for size in (1, 3, 1_000_000):
        monkeypatch.setattr(overlaps, "_PAIRS_PER_CHUNK", size)
        chunks = list(pairs_within_groups(detection_group, truth_group))
        assert [pair for rows, truth in chunks for pair in zip(rows.tolist(), truth.tolist(), strict=True)] == expected
        seen = [set(rows.tolist()) for rows, _ in chunks]
        assert sum(map(len, seen)) == len(set().union(*seen)), "a detection is split over chunks"


@pytest.mark.parametrize(("detections", "truth"), [(0, 3), (3, 0), (0, 0)])
def test_no_pairs_without_either_side(detections, truth):
    assert list(pairs_within_groups(np.zeros(detections, dtype=np.int64), np.zeros(truth, dtype=np.int64))) == []


def test_iou_equals_pycocotools_to_the_last_bit():
    random = np.random.default_rng(1)
    a, b = (np.concatenate([random.uniform(0, 50, (60, 2)), random.uniform(0, 60, (60, 2))], axis=1) for _ in "ab")
    a[:5, 2:] = 0
    b[3:8, 3] = 0
    b[8:12] = a[8:12]
    crowd = random.random(60) < 0.3
    expected = np.diag(mask.iou(a, b, crowd.astype(np.uint8)))
    np.testing.assert_array_equal(pair_ious(a, b, crowd), expected)


def test_iou_by_hand():
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 10, 10]])
    assert pair_ious(a, b, np.array([False])) == pytest.approx(50 / 150)
    assert pair_ious(a, b, np.array([True])) == pytest.approx(50 / 100)


def test_best_of_each_detection_takes_the_first_of_equals():
    rows, position = best_of_each_detection(np.array([2, 2, 2, 5, 7, 7]), np.array([0.1, 0.9, 0.9, 0.0, 0.3, 0.2]))
    assert rows.tolist() == [2, 5, 7]
    assert position.tolist() == [1, 3, 4]
