import numpy as np
import pytest

from detector.evaluation.results import DetectionTable
from detector.evaluation.voc_ap import VocMatches, voc_average_precision

THRESHOLDS = (0.5, 0.7, 0.9)


def devkit_ap(dataset, table, label, threshold, points):
    """The devkit's VOCevaldet.m and VOCap.m, line by line in Python, on inclusive corners."""
    corners = np.concatenate([dataset.boxes_xywh[:, :2], dataset.boxes_xywh[:, :2] + dataset.boxes_xywh[:, 2:] - 1], 1)
    mine = np.flatnonzero(table.labels == label)
    mine = mine[np.argsort(-table.scores[mine], kind="stable")]
    countable = ((dataset.labels == label) & ~dataset.is_difficult).sum()
    taken, hits, misses = set(), [], []
    for row in mine:
        x, y, w, h = table.boxes_xywh[row]
        box, best, best_overlap = (x, y, x + w - 1, y + h - 1), None, -np.inf
        rows = dataset.rows(int(table.image_index[row]))
        for k in range(rows.start, rows.stop):
            if dataset.labels[k] != label:
                continue
            other = corners[k]
            iw = min(box[2], other[2]) - max(box[0], other[0]) + 1
            ih = min(box[3], other[3]) - max(box[1], other[1]) + 1
            if iw > 0 and ih > 0:
                union = w * h + (other[2] - other[0] + 1) * (other[3] - other[1] + 1) - iw * ih
                if iw * ih / union > best_overlap:
                    best, best_overlap = k, iw * ih / union
        hit = best_overlap >= threshold
        ignored = hit and dataset.is_difficult[best]
        hits.append(float(hit and not ignored and best not in taken))
        misses.append(float(not ignored and not hits[-1]))
        if hits[-1]:
            taken.add(best)
    if countable == 0:
        return np.nan
    tp, fp = np.cumsum(hits), np.cumsum(misses)
    recall, precision = tp / countable, tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
    if points == "11":
        at_least = [precision[recall >= t] for t in np.arange(0.0, 1.1, 0.1)]
        return sum(p.max() if len(p) else 0.0 for p in at_least) / 11
    recall, precision = np.concatenate([[0], recall, [1]]), np.concatenate([[0], precision, [0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    change = np.flatnonzero(recall[1:] != recall[:-1])
    return ((recall[change + 1] - recall[change]) * precision[change + 1]).sum()


@pytest.mark.parametrize("points", ["11", "area"])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_devkit(make_random, points, seed):
    dataset, table = make_random(seed, crowds=0, difficults=0.2, ties=seed % 2 == 0, images=12, classes=4)
    object.__setattr__(dataset, "box_convention", "inclusive")
    metrics = voc_average_precision(dataset, table, iou=THRESHOLDS, points=points)
    expected = [[devkit_ap(dataset, table, label, t, points) for label in range(4)] for t in THRESHOLDS]
    np.testing.assert_allclose(metrics.class_ap, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.mean_ap, np.nanmean(expected, axis=1), rtol=0, atol=1e-12)
    assert metrics.ap == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_by_hand(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (1, 0, 20, 20, 50, 50)], images=2)
    table = make_table([(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 60, 60, 9, 9, 0.8), (1, 0, 20, 20, 50, 50, 0.7)])
    eleven = voc_average_precision(dataset, table, points="11")
    area = voc_average_precision(dataset, table, points="area")
    assert eleven.mean_ap == (pytest.approx((6 + 5 * 2 / 3) / 11),)
    assert area.ap == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_a_recall_of_three_tenths_misses_the_devkits_fourth_point(make_dataset, make_table):
    dataset = make_dataset([(image, 0, 0, 0, 10, 10) for image in range(10)], images=10)
    table = make_table([(image, 0, 0, 0, 10, 10, 0.9) for image in range(3)])
    assert voc_average_precision(dataset, table, points="11").ap == pytest.approx(3 / 11)  # not 4 / 11


def test_a_second_detection_of_an_object_is_a_miss_even_if_another_object_is_free(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (0, 0, 2, 0, 10, 10)], images=1)
    table = make_table([(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 0.5, 0, 10, 10, 0.8)])
    assert voc_average_precision(dataset, table, points="area", offset=0).ap == pytest.approx(0.5)


def test_the_threshold_itself_is_reached(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10)], images=1)
    table = make_table([(0, 0, 0, 0, 10, 5, 0.9)])
    assert voc_average_precision(dataset, table, iou=0.5, points="area", offset=0).ap == 1.0
    assert voc_average_precision(dataset, table, iou=0.51, points="area", offset=0).ap == 0.0


def test_offset_and_convention(make_dataset, make_table):
    # One pixel of 2 x 1 inclusive corners (0, 0, 1, 0) against (0, 0, 0, 0): 1 / 2 with the devkit's + 1.
    truth, found = [(0, 0, 0, 0, 2, 1)], [(0, 0, 0, 0, 1, 1, 0.9)]

    def iou_is(convention, offset, expected):
        dataset, table = make_dataset(truth, images=1, convention=convention), make_table(found)
        reached = [
            voc_average_precision(dataset, table, iou=expected + by, points="area", offset=offset).ap
            for by in (-1e-9, 1e-9)
        ]
        return reached == [1.0, 0.0]

    assert iou_is("inclusive", 1, 1 / 2)
    assert iou_is("half_open", 0, 1 / 2)
    assert iou_is("half_open", 1, 4 / 6)


def test_difficult_objects_alone_make_no_class(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (0, 1, 0, 0, 10, 10)], images=1, classes=3, difficult=[1])
    table = make_table([(0, 0, 0, 0, 10, 10, 0.9), (0, 1, 0, 0, 10, 10, 0.9), (0, 2, 0, 0, 10, 10, 0.9)])
    metrics = voc_average_precision(dataset, table, points="11")
    np.testing.assert_array_equal(metrics.class_ap, [[1.0, np.nan, np.nan]])
    assert metrics.ap == 1.0


def test_nothing_to_find_and_nothing_found(make_dataset, make_table):
    found = make_table([(0, 0, 0, 0, 10, 10, 0.9)])
    assert voc_average_precision(make_dataset([], images=1), found, points="11").ap is None
    objects = make_dataset([(0, 0, 0, 0, 10, 10)], images=1)
    for points in ("11", "area"):
        assert voc_average_precision(objects, DetectionTable.empty(), points=points).ap == 0.0


def test_curves_before_interpolation(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (1, 0, 20, 20, 50, 50)], images=2, classes=2)
    table = make_table([(0, 0, 60, 60, 9, 9, 0.9), (0, 0, 0, 0, 10, 10, 0.8), (0, 1, 0, 0, 10, 10, 0.8)])
    curve, other = (VocMatches.match(dataset, table).curve(label, 0.5) for label in range(2))
    assert curve.precision.tolist() == [0.0, 0.5]
    assert curve.recall.tolist() == [0.0, 0.5]
    assert other.precision.tolist() == [0.0]
    assert np.isnan(other.recall).all()
    assert np.isnan(other.average_precision("11"))
