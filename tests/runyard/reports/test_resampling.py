"""AP on other draws of the images: kept beside the evaluation, and the choice of alpha on one half of them."""

import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from detector.data.formats import open_dataset
from detector.data.samples import Dataset
from detector.errors import InputError
from detector.evaluation.bootstrap import mean_difference
from detector.evaluation.coco_ap import coco_average_precision
from detector.files import write_json
from runyard.reports.resampling import ResampledAP, best_alpha_on_halves, image_halves, resampled_ap
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from tests.detector.evaluation.paired import paired_bootstrap
from tests.runyard.finished_runs import finished_sweep


@pytest.fixture(scope="session")
def val(tiny_data: Path) -> Dataset:
    return open_dataset(tiny_data, "train")  # 21 images


@pytest.fixture
def pair(
    make_tiny_spec: Callable[[Path], ExperimentSpec], val: Dataset, tmp_path: Path
) -> tuple[TrialResult, TrialResult]:
    spec = make_tiny_spec(tmp_path)
    other = replace(spec, model=replace(spec.model, iou_head=False))
    first, second = finished_sweep(tmp_path, val, {"worse": (other, 5.0), "better": (spec, 2.0)}).results
    return first, second


def test_the_interval_is_that_of_the_paired_bootstrap(pair: tuple[TrialResult, TrialResult], val: Dataset) -> None:
    expected = paired_bootstrap(val, *(result.load_detections()[1] for result in pair), metrics=("AP", "AP75"))
    before, after = ([resampled_ap(result).draws] for result in pair)
    for metric, interval in expected.items():
        ours = mean_difference(before, after, metric)
        assert astuple(ours) == pytest.approx(astuple(interval), abs=1e-12)


def test_over_seeds_it_is_that_of_the_mean(pair: tuple[TrialResult, TrialResult]) -> None:
    first, second = (resampled_ap(result).draws for result in pair)
    both = mean_difference([first, first], [first, second], "AP")
    one = mean_difference([first], [second], "AP")
    assert (both.difference, both.low, both.high) == pytest.approx((one.difference / 2, one.low / 2, one.high / 2))


def test_a_half_is_scored_as_if_there_were_no_other(pair: tuple[TrialResult, TrialResult], val: Dataset) -> None:
    table = pair[0].load_detections()[1]
    halves = image_halves(val)
    resampled = resampled_ap(pair[0])
    for side in (0, 1):
        images = np.flatnonzero(halves == side)
        position = np.full(len(val), -1)
        position[images] = np.arange(len(images))
        part = table.select(position[table.image_index] >= 0)
        part = replace(part, image_index=position[part.image_index])
        expected = coco_average_precision(val.subset(images), part).summary
        assert resampled.half_sizes[side] == len(images)
        for metric in ("AP", "AP50", "AP90"):
            assert resampled.half(side, metric) == pytest.approx(expected[metric], abs=1e-12)


def test_it_is_read_again_and_a_damaged_one_is_made_again(pair: tuple[TrialResult, TrialResult]) -> None:
    first = resampled_ap(pair[0])
    shutil.rmtree(pair[0].run.candidates(pair[0].spec.validation_hash))  # not needed any more
    np.testing.assert_array_equal(resampled_ap(pair[0]).draws, first.draws)
    write_json(pair[0].evaluation.metrics, {"val/AP": 0.5})  # another evaluation
    with pytest.raises(InputError):
        resampled_ap(pair[0])
    path = pair[1].evaluation.resampled
    second = resampled_ap(pair[1])
    for damaged in (b"", path.read_bytes()[:500], b"PK" + bytes(100)):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(resampled_ap(pair[1]).draws, second.draws)


def test_halves_go_by_id_alone(val: Dataset) -> None:
    halves = image_halves(val)
    assert set(halves.tolist()) == {0, 1}
    assert image_halves(val.subset(np.array([5, 2]))).tolist() == halves[[5, 2]].tolist()
    many = replace(val, image_paths=val.image_paths * 100, image_ids=tuple(range(2100)))
    assert 0.46 < image_halves(many).mean() < 0.54


def flat(first: float, second: float) -> ResampledAP:
    """An evaluation with these APs on the two halves."""
    return ResampledAP(np.zeros((1, 10)), np.repeat([[first], [second]], 10, axis=1), (3, 4))


def test_alpha_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    by_alpha = {1.0: [flat(0.3, 0.2)], 0.5: [flat(0.4, 0.1)], 0.3: [flat(0.4, 0.3)]}
    first, second = best_alpha_on_halves(by_alpha)
    assert (first.images, first.alpha) == ((3, 4), 0.5)  # the first of equal ones
    assert (first.chosen_ap, first.reported_ap, first.best_ap) == pytest.approx((0.4, 0.1, 0.3))
    assert (second.images, second.alpha) == ((4, 3), 0.3)
    assert (second.chosen_ap, second.reported_ap, second.best_ap) == pytest.approx((0.3, 0.4, 0.4))
    seeds = {1.0: [flat(0.3, 0.2), flat(0.1, 0.4)], 0.5: [flat(0.1, 0.1), flat(0.1, 0.1)]}
    assert [choice.chosen_ap for choice in best_alpha_on_halves(seeds)] == pytest.approx([0.2, 0.3])


def test_halves_without_ground_truth_are_left_out() -> None:
    assert best_alpha_on_halves({0.5: [flat(np.nan, 0.2)]}) == []
    assert best_alpha_on_halves({}) == []
