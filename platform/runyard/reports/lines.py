"""The lines of a sweep's table: which trials are averaged, on which images, and against which baseline.

A line is a row of the table with one choice of axes: its trials differ in their seeds alone, and it shows their mean.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.evaluation.bootstrap import METRICS, Interval, mean_difference
from runyard.identity import baseline_setting_of, digest
from runyard.paper import ImageSet
from runyard.reports.render import Spread
from runyard.reports.resampling import ResampledAP
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec, to_dict

Resampled = Mapping[str, ResampledAP]
"""By the results' ids."""


@dataclass(frozen=True)
class Images:
    """A data set by what can be counted in it."""

    name: str
    images: int
    classes: int
    objects: int
    digest: str
    """Of ids and annotations: the images themselves need not be at hand."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Images":
        """Counts."""
        content = hashlib.sha256(json.dumps([dataset.image_ids, dataset.class_names]).encode())
        for column in (dataset.offsets, dataset.labels, dataset.boxes_xywh, dataset.is_crowd, dataset.is_difficult):
            content.update(column.tobytes())
        counts = len(dataset), len(dataset.categories), len(dataset.labels)
        return cls(dataset.name, *counts, content.hexdigest())

    def are(self, published: ImageSet) -> bool:
        """Whether they are those of a published data set; objects are compared where they are known."""
        same = (self.images, self.classes) == (published.images, published.classes)
        return same and published.objects in (None, self.objects)


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str
    results: tuple[TrialResult, ...]
    """Those of its trials that have metrics, by seed."""
    planned: int
    """Its trials in all."""

    @property
    def spec(self) -> ExperimentSpec:
        """Of its first trial."""
        return self.results[0].spec

    @property
    def label(self) -> str:
        """The name, with what a number in it means, and how many of its seeds there are where some are missing."""
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
        """The table's row."""
        return self.results[0].row

    @property
    def without_alpha(self) -> str:
        """The same for lines that differ in alpha, and in what follows from it, alone."""
        return digest({"setting": setting_of(self.spec), "loss": to_dict(self.spec.loss)})

    @property
    def alpha(self) -> float | None:
        """The alpha that ranks its boxes; None for the baseline, for p * IoU, and for the oracle."""
        scoring = self.spec.scoring
        ranked = self.spec.model.iou_head and scoring.confidence == "alpha" and not self.results[0].oracle
        return scoring.alpha if ranked else None

    @cached_property
    def evaluated_on(self) -> Images:
        """What its numbers are of."""
        return Images.of(load_dataset(self.results[0].val_data))

    @cached_property
    def trained_on(self) -> Images:
        """What its weights come from."""
        return Images.of(load_dataset(self.results[0].folder.train_data))


def lines_of(results: Sequence[TrialResult]) -> list[Line]:
    """The results by line, in order of first appearance; lines without any metrics are left out."""
    groups: dict[str, list[TrialResult]] = {}
    for result in results:
        groups.setdefault(result.line, []).append(result)
    lines = [Line(name, tuple(r for r in group if r.metrics is not None), len(group)) for name, group in groups.items()]
    return [line for line in lines if line.results]


def baseline_of(line: Line, lines: Sequence[Line]) -> Line | None:
    """The line without an IoU head that is otherwise trained and scored like this one, on the same images; None where
    there is none, or it is it."""
    if not line.spec.model.iou_head:
        return None
    alike = (o for o in lines if not o.spec.model.iou_head and setting_of(o.spec) == setting_of(line.spec))
    return next((o for o in alike if o.evaluated_on.digest == line.evaluated_on.digest), None)


def gains_of(line: Line, baseline: Line, columns: Sequence[str], resampled: Resampled) -> dict[str, Interval]:
    """Those of the columns that can be resampled: the line's minus the baseline's, means over their seeds; none where
    an evaluation could not be resampled."""
    if any(result.id not in resampled for side in (baseline, line) for result in side.results):
        return {}
    before, after = ([resampled[result.id].draws for result in side.results] for side in (baseline, line))
    return {column: mean_difference(before, after, column) for column in columns if column in METRICS}


def setting_of(spec: ExperimentSpec) -> str:
    """Key of all that a baseline must share."""
    return digest(baseline_setting_of(spec))
