"""P9: COCO AP of 5,000 images and 500,000 detections, against pycocotools on the same arrays."""

from pathlib import Path

import numpy as np

from benchmarks.intervals import Goal
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import interleaved, seconds
from detector.data.samples import Category, Dataset
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.results import DetectionTable

IMAGES, DETECTIONS_PER_IMAGE, CLASSES = 5000, 100, 80


def measure(settings: Settings) -> list[Row]:
    """P9."""
    images = 20 if settings.quick else IMAGES
    dataset, table = made_up_results(images, DETECTIONS_PER_IMAGE)
    checked = check(dataset, table)
    ours, other = interleaved(
        seconds(lambda: coco_average_precision(dataset, table)),
        seconds(lambda: coco_average_precision(dataset, table, backend="pycocotools")),
        repeats=settings.repeats(6),
        warm_up=0,  # the check was one
    )
    shape = settings.describe(f"{images:,} images, {len(table):,} detections", full=True)
    goal = None if settings.quick else Goal(40.0, at_least=True)
    return [
        Row(
            key="P9",
            what="COCO AP",
            size=shape,
            kind="speed-up",
            unit="s",
            ours=ours,
            other=other,
            other_name="pycocotools",
            goal=goal,
            goal_text="40x and more, equal",
            checked=checked,
        )
    ]


def check(dataset: Dataset, table: DetectionTable) -> str:
    """Every number of both; AssertionError where one differs."""
    ours = coco_average_precision(dataset, table)
    other = coco_average_precision(dataset, table, backend="pycocotools")
    if not (np.array_equal(ours.precision, other.precision) and np.array_equal(ours.recall, other.recall)):
        worst = float(np.abs(ours.precision - other.precision).max())
        raise AssertionError(f"precision differs from pycocotools' by up to {worst}")
    return f"precision and recall equal to the last bit ({ours.precision.size + ours.recall.size:,} numbers)"


def made_up_results(images: int, per_image: int, seed: int = 0) -> tuple[Dataset, DetectionTable]:
    """COCO-like ground truth (7 objects an image, 1 in 100 a crowd) and detections, half of them near an object."""
    random = np.random.default_rng(seed)
    counts = random.poisson(7.3, images)
    total = int(counts.sum())
    sides = np.exp(random.uniform(np.log(8), np.log(400), (total, 2)))
    corners = random.uniform(0, 1, (total, 2)) * (np.array([640, 480]) - np.minimum(sides, [630, 470]))
    boxes = np.concatenate([corners, sides], axis=1)
    labels = random.integers(0, CLASSES, total)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    dataset = Dataset(
        name="made up",
        categories=tuple(Category(label + 1, f"class {label}") for label in range(CLASSES)),
        image_paths=tuple(Path(f"{number}.jpg") for number in range(images)),
        image_ids=tuple(range(1, images + 1)),
        image_sizes=np.tile(np.array([[640, 480]], dtype=np.int64), (images, 1)),
        offsets=offsets,
        boxes_xywh=boxes,
        labels=labels,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=random.random(total) < 0.01,
        is_difficult=np.zeros(total, dtype=bool),
    )
    image = np.repeat(np.arange(images), per_image)
    found = random.uniform(0, 400, (len(image), 4))
    found[:, 2:] += 8
    found_labels = random.integers(0, CLASSES, len(image))
    near = (random.random(len(image)) < 0.5) & (counts[image] > 0)
    owner = offsets[image[near]] + random.integers(0, 1_000_000, int(near.sum())) % counts[image[near]]
    found[near] = np.maximum(boxes[owner] + random.normal(0, 0.08, (len(owner), 4)) * np.tile(sides[owner], 2), 1.0)
    found_labels[near] = labels[owner]
    scores = np.round(random.beta(0.6, 2.0, len(image)), 4)  # rounded: equal scores must rank alike
    return dataset, DetectionTable(image_index=image, labels=found_labels, boxes_xywh=found, scores=scores)
