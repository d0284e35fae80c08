"""P9: COCO AP of 5,000 images and 500,000 detections, against pycocotools as its users call it.

Each side begins with what it is given in practice, in memory: ours with columns, pycocotools with the dictionaries that
`json.load` makes of an annotation file and of a result file. Both end with every precision and recall. Ours is hotcoco
on one thread behind `coco_average_precision`, which orders and numbers everything for it; pycocotools has one thread.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

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
    files = as_loaded_from_json(dataset, table)
    numbers: dict[str, Any] = {}

    def ours_once() -> None:
        found = coco_average_precision(dataset, table)
        numbers["ours"] = found.precision, found.recall

    def other_once() -> None:
        numbers["other"] = pycocotools(*files)

    check(*made_up_results(20, DETECTIONS_PER_IMAGE))  # the warm-up: the first call imports
    ours, other = interleaved(seconds(ours_once), seconds(other_once), repeats=settings.repeats(6), warm_up=0)
    checked = compare(numbers["ours"], numbers["other"])
    shape = settings.describe(f"{images:,} images, {len(table):,} detections", full=True)
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
            goal=settings.goal(40.0, at_least=True),
            goal_text="40x and more, equal",
            checked=checked,
        )
    ]


def check(dataset: Dataset, table: DetectionTable) -> str:
    """Compare every number of both; AssertionError where one differs."""
    ours = coco_average_precision(dataset, table)
    return compare((ours.precision, ours.recall), pycocotools(*as_loaded_from_json(dataset, table)))


def compare(ours: tuple[Any, Any], other: tuple[Any, Any]) -> str:
    """Precision and recall of both, bit by bit."""
    for name, a, b in zip(("precision", "recall"), ours, other, strict=True):
        if not np.array_equal(a, b):
            raise AssertionError(f"{name} differs from pycocotools' by up to {float(np.abs(a - b).max())}")
    return f"precision and recall equal to the last bit ({ours[0].size + ours[1].size:,} numbers)"


def as_loaded_from_json(dataset: Dataset, table: DetectionTable) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An annotation file and a result file, as `json.load` gives them."""
    owner = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))
    ids, category_ids = dataset.image_ids, [category.id for category in dataset.categories]
    truth = zip(
        owner.tolist(), dataset.labels.tolist(), dataset.boxes_xywh.tolist(), dataset.areas.tolist(),
        dataset.is_crowd.tolist(), strict=True,
    )  # fmt: skip
    annotations = {
        "images": [{"id": id, "width": 640, "height": 480, "file_name": ""} for id in ids],
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
        "annotations": [
            {
                "id": number,
                "image_id": ids[image],
                "category_id": category_ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image, label, box, area, crowd) in enumerate(truth, start=1)
        ],
    }
    found = zip(
        table.image_index.tolist(), table.labels.tolist(), table.boxes_xywh.tolist(), table.scores.tolist(), strict=True
    )
    results = [
        {"image_id": ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in found
    ]
    return annotations, results


def pycocotools(annotations: dict[str, Any], results: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Precision and recall of pycocotools, by the calls of its own demonstration."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"], evaluation.eval["recall"]


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
        image_sizes=np.tile(np.array([[480, 640]], dtype=np.int64), (images, 1)),
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
