"""Rows of a sweep's table: which trials are averaged, on which images, and against which baseline.

The trials of a table row have one setting and the same images; they differ in their seeds only, and the row shows their
mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.evaluation.bootstrap import METRICS, Interval, mean_difference
from runyard.grid import line_names
from runyard.paper import ImageSet
from runyard.reports.render import Spread
from runyard.reports.resampling import ResampledAP
from runyard.runs.attempts import commits
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec
from runyard.spec.identity import baseline_setting_of, digest, setting_of

Resampled = Mapping[str, ResampledAP]
"""Resamples by the results' ids."""

_ALPHA_FIELDS = ("scoring.alpha", "scoring.confidence")


@dataclass(frozen=True)
class Images:
    """A data set by what can be counted in it."""

    name: str
    images: int
    classes: int
    objects: int

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> "Images":
        """Counts of a data set."""
        return cls(dataset.name, len(dataset), len(dataset.categories), len(dataset.labels))

    def are(self, published: ImageSet) -> bool:
        """True if they are those of a published data set; objects are compared where they are known."""
        same = (self.images, self.classes) == (published.images, published.classes)
        return same and published.objects in (None, self.objects)


@dataclass(frozen=True)
class TableRow:
    """One row of a table."""

    name: str
    """The row of the grid, and the fields that tell its settings apart."""
    results: tuple[TrialResult, ...]
    """Those of its trials that have metrics, by seed; one at least."""
    planned: int
    """Number of its trials."""

    def __post_init__(self) -> None:
        settings = {result.trial.setting for result in self.results}
        assert len(settings) == 1, "the trials of a row differ in their seeds only"

    @property
    def spec(self) -> ExperimentSpec:
        """Spec of the first trial."""
        return self.results[0].spec

    @property
    def oracle(self) -> bool:
        """True if the boxes are ranked by their true IoU."""
        return self.results[0].oracle

    @property
    def label(self) -> str:
        """The name, with the field of a bare number, and how many of its seeds there are where some are missing."""
        name = f"alpha {self.name}" if self.alpha is not None and self.name[0].isdigit() else self.name
        missing = len(self.results) < self.planned
        return f"{name} ({len(self.results)} of {self.planned} seeds)" if missing else name

    def spread(self, metric: str) -> Spread:
        """Mean over the seeds, and the sample's standard deviation where there are two or more."""
        values = [r.metrics[metric] for r in self.results if r.metrics and metric in r.metrics]
        if not values:
            return Spread(None, None)
        return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)

    @property
    def row(self) -> str:
        """Row of the grid."""
        return self.results[0].row

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the trials."""
        return tuple(result.spec.seed for result in self.results)

    @property
    def without_alpha(self) -> str:
        """Key that is equal for rows that differ in alpha only."""
        setting = {name: value for name, value in setting_of(self.spec).items() if name not in _ALPHA_FIELDS}
        return digest({"setting": setting, "data": self.data})

    @cached_property
    def baseline_setting(self) -> dict[str, Any]:
        """Setting that a baseline has to share."""
        return baseline_setting_of(self.spec)

    @cached_property
    def data(self) -> tuple[str, str]:
        """Fingerprints of the training and of the evaluated images."""
        return self.results[0].data_fingerprints

    @property
    def alpha(self) -> float | None:
        """The alpha that ranks its boxes; None for the baseline, for p * IoU, and for the oracle."""
        scoring = self.spec.scoring
        ranked = self.spec.model.iou_head and scoring.confidence == "alpha" and not self.oracle
        return scoring.alpha if ranked else None

    @cached_property
    def commits(self) -> tuple[str, ...]:
        """Different commits that its runs were trained at."""
        return tuple(dict.fromkeys(commit for result in self.results for commit in commits(result.run)))

    @cached_property
    def evaluated_on(self) -> Images:
        """Counts of the evaluated images."""
        return Images.from_dataset(load_dataset(self.results[0].val_data))

    @cached_property
    def trained_on(self) -> Images:
        """Counts of the training images."""
        return Images.from_dataset(load_dataset(self.results[0].run.train_data))


def rows_of(results: Sequence[TrialResult]) -> list[TableRow]:
    """The results by setting and images, in order of first appearance; rows without any metrics are left out."""
    names = line_names([result.trial for result in results])
    groups: dict[tuple[str, tuple[str, str]], list[TrialResult]] = {}
    for result in results:
        groups.setdefault((result.trial.setting, result.data_fingerprints), []).append(result)
    found = []
    used: dict[str, int] = {}
    for group in groups.values():
        name = names[group[0].id]
        used[name] = used.get(name, 0) + 1
        if used[name] > 1:  # one setting on other images
            name = f"{name}, images {digest({'data': group[0].data_fingerprints})[:8]}"
        with_metrics = tuple(sorted((r for r in group if r.metrics is not None), key=lambda r: r.spec.seed))
        if with_metrics:
            found.append(TableRow(name, with_metrics, len(group)))
    return found


def baseline_of(row: TableRow, rows: Sequence[TableRow]) -> TableRow | None:
    """The row without an IoU head that is otherwise trained and scored like this one, on the same images and a seed."""
    if not row.spec.model.iou_head:
        return None
    return next((other for other in rows if _is_baseline_of(other, row)), None)


def why_no_baseline(row: TableRow, rows: Sequence[TableRow]) -> str | None:
    """Reason why a row has no difference to a baseline; None where it has one, or is a baseline itself."""
    if not row.spec.model.iou_head or baseline_of(row, rows) is not None:
        return None
    headless = [other for other in rows if not other.spec.model.iou_head]
    if not headless:
        return "the sweep has no baseline"
    wanted = row.baseline_setting

    def differences(other: TableRow) -> list[str]:
        found = other.baseline_setting
        names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        images = zip(("training", "evaluated"), row.data, other.data, strict=True)
        names += [f"{what} images" for what, ours, theirs in images if ours != theirs]
        return names if common_seeds([other, row]) else [*names, "seed"]

    nearest = min((differences(other) for other in headless), key=len)
    return f"no baseline with the same {', '.join(nearest)}"


def common_seeds(rows: Sequence[TableRow]) -> frozenset[int]:
    """Seeds that every one of the rows has."""
    return frozenset.intersection(*(frozenset(row.seeds) for row in rows))


def gains_of(row: TableRow, baseline: TableRow, columns: Sequence[str], resampled: Resampled) -> dict[str, Interval]:
    """Difference to the baseline in each column that can be resampled; none where resamples lack.

    Means over the seeds that both have: what one row has more of does not enter.
    """
    seeds = common_seeds([baseline, row])
    sides = [[result for result in side.results if result.spec.seed in seeds] for side in (baseline, row)]
    if any(result.id not in resampled for side in sides for result in side):
        return {}
    before, after = ([resampled[result.id].draws for result in side] for side in sides)
    return {column: mean_difference(before, after, column) for column in columns if column in METRICS}


def _is_baseline_of(other: TableRow, row: TableRow) -> bool:
    same = other.baseline_setting == row.baseline_setting and other.data == row.data
    return same and not other.spec.model.iou_head and not other.oracle and bool(common_seeds([other, row]))
