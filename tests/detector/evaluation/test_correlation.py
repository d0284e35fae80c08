import numpy as np
import pytest
from pycocotools import mask
from scipy import stats

from detector.evaluation.correlation import Correlation, confidence_correlation, true_ious
from detector.evaluation.results import DetectionTable


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scipy(ties):
    random = np.random.default_rng(0)
    x = random.random(500)
    y = 0.4 * x + random.random(500)
    if ties:
        x, y = x.round(1), y.round(1)
    result = confidence_correlation(x, y)
    assert result.n == 500
    assert result.pearson == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert result.spearman == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_by_hand():
    x = np.array([1.0, 2.0, 3.0])
    assert confidence_correlation(x, np.array([1.0, 8.0, 27.0])).spearman == 1.0
    assert confidence_correlation(x, -x) == Correlation(-1.0, -1.0, 3)
    # Ranks 1, 2.5, 2.5 against 1, 2, 3: covariance 1.5, variances 1.5 and 2.
    assert confidence_correlation(np.array([0.0, 5.0, 5.0]), x).spearman == pytest.approx(1.5 / np.sqrt(1.5 * 2))


@pytest.mark.parametrize("values", [[], [0.5], [0.1, 0.1, 0.1], [np.nan, 0.5, np.nan]])
def test_not_available(values):
    other = np.linspace(0, 1, len(values))
    result = confidence_correlation(np.array(values), other)
    assert (result.pearson, result.spearman) == (None, None)
    assert result.n == np.isfinite(values).sum()


def test_unknown_values_are_left_out():
    x, y = np.array([0.1, np.nan, 0.5, 0.9]), np.array([0.2, 0.9, 0.1, 0.8])
    assert confidence_correlation(x, y) == confidence_correlation(x[[0, 2, 3]], y[[0, 2, 3]])


def test_tiny_differences_do_not_vanish():
    x = np.array([0.0, 1e-200, 2e-200])
    assert confidence_correlation(x, x).pearson == pytest.approx(1.0)


def test_true_iou_by_hand(make_dataset, make_table):
    dataset = make_dataset(
        [(0, 0, 0, 0, 10, 10), (0, 1, 5, 0, 10, 10), (1, 0, 0, 0, 10, 10), (1, 0, 50, 50, 10, 10)],
        images=3, classes=2, crowd=[2], difficult=[3],
    )  # fmt: skip
    table = make_table([
        (0, 0, 5, 0, 10, 10, 0.9),  # another class's object is the better one
        (0, 0, 10, 0, 10, 10, 0.9),
        (1, 0, 0, 0, 10, 10, 0.9),  # on a crowd
        (1, 0, 50, 50, 10, 10, 0.9),  # on a difficult object
        (2, 0, 0, 0, 10, 10, 0.9),  # nothing there
        (0, 0, 0, 0, 0, 0, 0.9),
    ])  # fmt: skip
    np.testing.assert_allclose(true_ious(dataset, table), [1, 50 / 150, 0, 1, 0, 0])


def test_true_iou_by_brute_force(make_random):
    dataset, table = make_random(0)
    expected = []
    for image, box in zip(table.image_index.tolist(), table.boxes_xywh, strict=True):
        rows = dataset.rows(image)
        truth = dataset.boxes_xywh[rows][~dataset.is_crowd[rows]]
        expected.append(mask.iou(box[None], truth, np.zeros(len(truth))).max() if len(truth) else 0.0)
    np.testing.assert_array_equal(true_ious(dataset, table), expected)


def test_true_iou_of_nothing(make_dataset):
    assert true_ious(make_dataset([], images=2), DetectionTable.empty()).shape == (0,)
