"""Small data sets and detections for the evaluation's tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detector.data.samples import Category, Dataset
from detector.evaluation.results import DetectionTable


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """Builds a data set from (image, label, x, y, w, h) rows."""

    def make(truth, *, images, classes=1, crowd=(), difficult=(), areas=None, image_ids=None, convention="half_open"):
        rows = np.array(truth, dtype=np.float64).reshape(-1, 6)
        order = np.argsort(rows[:, 0], kind="stable")
        flags = np.zeros((2, len(rows)), dtype=bool)
        flags[0, list(crowd)] = True
        flags[1, list(difficult)] = True
        areas = rows[:, 4] * rows[:, 5] if areas is None else np.asarray(areas, dtype=np.float64)
        counts = np.bincount(rows[:, 0].astype(np.int64), minlength=images)
        return Dataset(
            name="test",
            categories=tuple(Category(id=3 * label + 7, name=f"class {label}") for label in range(classes)),
            image_paths=tuple(Path(f"/nowhere/{i}.jpg") for i in range(images)),
            image_ids=tuple(range(100, 100 + images)) if image_ids is None else tuple(image_ids),
            image_sizes=np.full((images, 2), 640, dtype=np.int64),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes_xywh=rows[order, 2:],
            labels=rows[order, 1].astype(np.int64),
            areas=areas[order],
            is_crowd=flags[0, order],
            is_difficult=flags[1, order],
            box_convention=convention,
        )

    return make


@pytest.fixture(scope="session")
def make_table() -> Callable[..., DetectionTable]:
    """Builds detections from (image, label, x, y, w, h, score) rows."""

    def make(rows, **factors):
        columns = np.array(rows, dtype=np.float64).reshape(-1, 7)
        return DetectionTable(
            image_index=columns[:, 0].astype(np.int64),
            labels=columns[:, 1].astype(np.int64),
            boxes_xywh=columns[:, 2:6],
            scores=columns[:, 6],
            **{name: np.asarray(values, dtype=np.float64) for name, values in factors.items()},
        )

    return make


@pytest.fixture(scope="session")
def make_random(make_dataset, make_table) -> Callable[..., tuple[Dataset, DetectionTable]]:
    """A data set and detections near its objects, from a seed: `ties` rounds scores, `crowds` is a share."""

    def make(seed, *, images=20, objects=4, found=10, classes=3, ties=False, crowds=0.1, difficults=0.0):
        random = np.random.default_rng(seed)
        count = images * objects
        truth = np.column_stack([
            random.integers(0, images, count), random.integers(0, classes, count),
            random.uniform(0, 300, (count, 2)), random.uniform(4, 200, (count, 2)),
        ])  # fmt: skip
        source = truth[random.integers(0, count, images * found)] if count else np.zeros((0, 6))
        rows = np.column_stack([source, random.random(len(source))])
        rows[:, 2:6] += random.normal(0, 1, (len(rows), 4)) * random.choice([0, 1, 5, 25], (len(rows), 1))
        rows[:, 4:6] = np.maximum(rows[:, 4:6], 0)
        elsewhere = random.random(len(rows)) < 0.3
        rows[elsewhere, 0] = random.integers(0, images, elsewhere.sum())
        other = random.random(len(rows)) < 0.2
        rows[other, 1] = random.integers(0, classes, other.sum())
        if ties:
            rows[:, 6] = rows[:, 6].round(1)
        crowd, difficult = (np.flatnonzero(random.random(count) < share) for share in (crowds, difficults))
        return make_dataset(truth, images=images, classes=classes, crowd=crowd, difficult=difficult), make_table(rows)

    return make
