import numpy as np
import pytest

from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.results import DetectionTable

BACKENDS = ("hotcoco", "pycocotools")


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(make_dataset, make_table, backend):
    # Two objects; a hit, a miss, a hit: precision 1 up to recall 0.5, then 2/3.
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (1, 0, 20, 20, 50, 50)], images=2)
    table = make_table([(0, 0, 0, 0, 10, 10, 0.9), (0, 0, 60, 60, 9, 9, 0.8), (1, 0, 20, 20, 50, 50, 0.7)])
    metrics = coco_average_precision(dataset, table, backend=backend)
    expected = (51 * 1 + 50 * 2 / 3) / 101
    for name in ("AP", "AP50", "AP95"):
        assert metrics.summary[name] == pytest.approx(expected, abs=1e-12)
    assert metrics.summary["AR1"] == metrics.summary["AR100"] == 1.0
    assert metrics.summary["APS"] == pytest.approx(1.0)  # the miss is small too, but scores less than the hit
    assert metrics.summary["APM"] == pytest.approx(1.0)  # small misses are ignored among medium objects
    assert metrics.summary["APL"] is None
    assert metrics.precision.shape == (10, 101, 1, 4, 3)
    assert metrics.recall.shape == (10, 1, 4, 3)


def test_names_of_all_metrics(make_random):
    metrics = coco_average_precision(*make_random(0))
    thresholds = [f"AP{percent}" for percent in range(50, 100, 5)]
    assert list(metrics.summary) == [
        "AP", *thresholds, "APS", "APM", "APL", "AR1", "AR10", "AR100", "ARS", "ARM", "ARL",
    ]  # fmt: skip
    assert metrics.limits == (1, 10, 100)
    assert list(metrics.per_class) == ["AP", "AP50", "AP75", "APS", "APM", "APL", "AR"]
    assert all(column.shape == (3,) for column in metrics.per_class.values())


def test_backends_agree(make_random):
    for seed in range(6):
        dataset, table = make_random(seed, ties=seed % 2 == 0, difficults=0.1, found=8)
        fast, slow = (coco_average_precision(dataset, table, backend=backend) for backend in BACKENDS)
        np.testing.assert_allclose(fast.precision, slow.precision, rtol=0, atol=1e-12)
        np.testing.assert_allclose(fast.recall, slow.recall, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_without_ground_truth_is_not_averaged(make_dataset, make_table, backend):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10), (0, 2, 0, 0, 10, 10)], images=1, classes=4, crowd=[1])
    table = make_table([(0, 0, 0, 0, 10, 10, 0.9), (0, 1, 0, 0, 10, 10, 0.9), (0, 2, 0, 0, 10, 10, 0.9)])
    metrics = coco_average_precision(dataset, table, backend=backend)
    assert metrics.summary["AP"] == pytest.approx(1.0)
    np.testing.assert_array_equal(np.isnan(metrics.per_class["AP"]), [False, True, True, True])
    assert np.isnan(metrics.class_ap).sum() == 30


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_to_find_and_nothing_found(make_dataset, make_table, backend):
    found = make_table([(0, 0, 0, 0, 10, 10, 0.9)])
    empty = coco_average_precision(make_dataset([], images=1), found, backend=backend)
    assert set(empty.summary.values()) == {None}
    objects = make_dataset([(0, 0, 0, 0, 10, 10)], images=1)
    blind = coco_average_precision(objects, DetectionTable.empty(), backend=backend)
    assert blind.summary["AP"] == blind.summary["AR100"] == 0.0
    assert blind.summary["APL"] is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_difficult_objects_and_crowds_are_ignored_any_number_of_times(make_dataset, make_table, backend):
    truth = [(0, 0, 0, 0, 10, 10), (0, 0, 100, 100, 50, 50)]
    table = make_table([(0, 0, 100, 100, 50, 50, 0.9), (0, 0, 110, 110, 30, 30, 0.8), (0, 0, 0, 0, 10, 10, 0.7)])
    for flag in ("crowd", "difficult"):
        dataset = make_dataset(truth, images=1, **{flag: [1]})
        assert coco_average_precision(dataset, table, backend=backend).summary["AP"] == pytest.approx(1.0)
    counted = coco_average_precision(make_dataset(truth, images=1), table, backend=backend)
    assert counted.summary["AP"] < 1.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_at_most_max_detections_of_one_image_and_class_count(make_dataset, make_table, backend):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10)], images=1)
    table = make_table([(0, 0, 50, 50, 5, 5, 0.9 - 0.01 * i) for i in range(4)] + [(0, 0, 0, 0, 10, 10, 0.1)])
    within = coco_average_precision(dataset, table, backend=backend, max_detections=5)
    beyond = coco_average_precision(dataset, table, backend=backend, max_detections=4)
    assert within.limits == (1, 5)
    assert within.summary["AR5"] == 1.0
    assert within.summary["AP"] == pytest.approx(0.2)
    assert beyond.summary["AP"] == 0.0


def test_the_order_of_images_does_not_matter_even_for_equal_scores(make_random):
    dataset, table = make_random(3, ties=True)
    order = np.random.default_rng(0).permutation(len(dataset))
    position = np.argsort(order)
    shuffled = DetectionTable(position[table.image_index], table.labels, table.boxes_xywh, table.scores)
    expected = coco_average_precision(dataset, table)
    np.testing.assert_array_equal(coco_average_precision(dataset.subset(order), shuffled).precision, expected.precision)


def test_ids_may_be_names(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 9, 9), (1, 0, 0, 0, 9, 9)], images=2, image_ids=["2007_b", "000001"])
    table = make_table([(0, 0, 0, 0, 9, 9, 0.5), (1, 0, 40, 0, 9, 9, 0.5)])
    # '000001' ranks first, so its miss comes before the hit of equal score.
    assert coco_average_precision(dataset, table).summary["AP50"] == pytest.approx(51 * 0.5 / 101)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prints_nothing(make_random, capfd, backend):
    coco_average_precision(*make_random(0), backend=backend, max_detections=50)
    assert capfd.readouterr() == ("", "")
