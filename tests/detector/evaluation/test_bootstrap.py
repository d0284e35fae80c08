import numpy as np
import pytest

from detector.evaluation.bootstrap import Interval, image_draws, weighted_average_precision
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.coco_matches import match_as_coco
from detector.evaluation.results import DetectionTable
from tests.detector.evaluation.paired import paired_bootstrap

ALL = range(10)
NAMES = [f"AP{percent}" for percent in range(50, 100, 5)]


def shifted(table, by):
    boxes = table.boxes_xywh + np.array([by, by, 0, 0])
    return DetectionTable(table.image_index, table.labels, boxes, table.scores)


@pytest.mark.parametrize("seed", range(8))
def test_with_weights_of_one_it_is_coco_ap(make_random, seed):
    dataset, table = make_random(
        seed, ties=seed % 2 == 0, difficults=0.1, found=(3, 10, 60)[seed % 3], classes=1 + seed
    )
    limit = 100 if seed % 3 else 5
    matches = match_as_coco(dataset, table, max_detections=limit)
    ap = weighted_average_precision(matches, 1 + seed, np.ones((1, len(dataset)), dtype=np.int64), ALL)[0]
    expected = coco_average_precision(dataset, table, max_detections=limit).summary
    np.testing.assert_allclose(ap, [expected[name] for name in NAMES], rtol=0, atol=1e-12)


def test_with_whole_weights_it_is_coco_ap_of_the_repeated_images(make_random):
    dataset, table = make_random(1, images=15)
    random = np.random.default_rng(2)
    weights = random.multinomial(15, np.full(15, 1 / 15), size=5)
    ap = weighted_average_precision(match_as_coco(dataset, table), 3, weights, ALL)
    for row, drawn in zip(ap, weights, strict=True):
        images = np.repeat(np.arange(15), drawn)
        repeated = dataset.subset(images)
        object.__setattr__(repeated, "image_ids", tuple(range(len(images))))
        copies = [table.select(table.image_index == image) for image in images]
        together = DetectionTable.concatenate([
            DetectionTable(np.full(len(copy), position), copy.labels, copy.boxes_xywh, copy.scores)
            for position, copy in enumerate(copies)
        ])  # fmt: skip
        expected = coco_average_precision(repeated, together).summary
        np.testing.assert_allclose(row, [expected[name] for name in NAMES], rtol=0, atol=1e-12)


def test_a_table_against_itself_differs_by_nothing(make_random):
    dataset, table = make_random(0)
    result = paired_bootstrap(dataset, table, table, resamples=50)
    assert list(result) == ["AP", "AP50", "AP75", "AP90"]
    assert set(result.values()) == {Interval(0.0, 0.0, 0.0)}


def test_a_clear_difference_is_found_and_its_sign_follows_the_order(make_random):
    dataset, table = make_random(0, images=40)
    worse = shifted(table, 6.0)
    forward = paired_bootstrap(dataset, worse, table, resamples=200, metrics=("AP", "AP75"))
    backward = paired_bootstrap(dataset, table, worse, resamples=200, metrics=("AP", "AP75"))
    both = [coco_average_precision(dataset, t).summary for t in (worse, table)]
    for metric, interval in forward.items():
        assert interval.difference == pytest.approx(both[1][metric] - both[0][metric], abs=1e-12)
        assert 0 < interval.low < interval.difference < interval.high
        assert backward[metric].low == pytest.approx(-interval.high)


def test_the_seed_decides(make_random):
    dataset, table = make_random(0)
    other = shifted(table, 2.0)
    first, again, another = (paired_bootstrap(dataset, table, other, resamples=60, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != another
    assert first["AP"].difference == another["AP"].difference


def test_the_interval_covers_as_it_should(make_random):
    # The same detector on halves of a population: about 95 % of the intervals hold the difference of the whole.
    dataset, table = make_random(5, images=400, found=6)
    other = shifted(table, 2.0)
    whole = paired_bootstrap(dataset, table, other, resamples=1, metrics=("AP50",))["AP50"].difference
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        images = np.sort(random.choice(400, 60, replace=False))
        position = np.full(400, -1)
        position[images] = np.arange(60)
        tables = []
        for full in (table, other):
            part = full.select(position[full.image_index] >= 0)
            tables.append(DetectionTable(position[part.image_index], part.labels, part.boxes_xywh, part.scores))
        interval = paired_bootstrap(dataset.subset(images), *tables, resamples=200, seed=trial, metrics=("AP50",))[
            "AP50"
        ]
        covered += interval.low <= whole <= interval.high
    assert covered >= 50


def test_without_ground_truth_or_detections(make_dataset, make_table, make_random):
    found = make_table([(0, 0, 0, 0, 10, 10, 0.9)])
    assert paired_bootstrap(make_dataset([], images=1), found, found, resamples=3)["AP"] == Interval(None, None, None)
    dataset, table = make_random(0)
    result = paired_bootstrap(dataset, DetectionTable.empty(), table, resamples=20)["AP50"]
    assert result.difference == pytest.approx(coco_average_precision(dataset, table).summary["AP50"], abs=1e-12)
    none = DetectionTable.empty()
    assert paired_bootstrap(dataset, none, none, resamples=5)["AP"] == Interval(0.0, 0.0, 0.0)


def test_resamples_without_any_ground_truth_are_left_out(make_dataset, make_table):
    dataset = make_dataset([(0, 0, 0, 0, 10, 10)], images=3)
    hit, none = make_table([(0, 0, 0, 0, 10, 10, 0.9)]), DetectionTable.empty()
    assert paired_bootstrap(dataset, none, hit, resamples=100)["AP"] == Interval(*(pytest.approx(1.0),) * 3)


def test_an_unknown_metric_is_refused(make_random):
    dataset, table = make_random(0)
    with pytest.raises(ValueError, match="APS"):
        paired_bootstrap(dataset, table, table, metrics=("APS",))


def test_a_number_of_resamples_is_needed():
    with pytest.raises(ValueError, match="at least 1"):
        image_draws(3, 0, 0)
