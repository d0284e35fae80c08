"""Two detectors compared on the same draws of the images, as a sweep compares its lines."""

from collections.abc import Sequence

from detector.data.samples import Dataset
from detector.evaluation.bootstrap import Interval, image_draws, mean_difference, resample
from detector.evaluation.results import DetectionTable


def paired_bootstrap(
    dataset: Dataset,
    a: DetectionTable,
    b: DetectionTable,
    *,
    resamples: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = ("AP", "AP50", "AP75", "AP90"),
) -> dict[str, Interval]:
    """b minus a."""
    weights = image_draws(len(dataset), resamples, seed)
    before, after = ([resample(dataset, table, weights)] for table in (a, b))
    return {metric: mean_difference(before, after, metric) for metric in metrics}
