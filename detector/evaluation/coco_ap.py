"""COCO's average precision and recall, by hotcoco (fast) or pycocotools (the arbiter).

T IoU thresholds, R recall thresholds, C classes, A area ranges, M limits on detections per image and class.

Both backends are given our own normalised ground truth, built in memory: annotation ids from 1 (pycocotools takes a
match with annotation id 0 for no match), images numbered from 1 in the order of their ids, categories from 1 in label
order. Rows of equal score rank by image id, then by their order in the table, as pycocotools' merge sort has it.

Crowds are ignored as pycocotools does it: a detection counts as matched to a crowd by intersection over its own area,
and any number of detections may match one. PASCAL VOC's difficult objects are passed as crowds, as MMDetection's
converter does: COCO knows no other kind of object to ignore, and as in the VOC devkit any number of detections of one
stay uncounted (a regular ignored object would absorb only one).
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.results import DetectionTable

Backend = Literal["hotcoco", "pycocotools"]

# Spelt as pycocotools spells them: np.arange(0.5, 1.0, 0.05) differs in the last digit, and thresholds are compared.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_NAMES = ("all", "small", "medium", "large")
_AREA_RANGES = [[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]]


@dataclass(frozen=True, eq=False)
class CocoMetrics:
    """AP and AR as fractions from 0 to 1; None (scalars) and NaN (arrays) without ground truth.

    What is not available is left out of every average.
    """

    summary: dict[str, float | None]
    """AP, AP50, AP55, ..., AP95, APS, APM, APL, AR1, AR10, AR100, ARS, ARM, ARL. AR<limit> names the limits used."""
    class_ap: NDArray[np.float64]
    """(T, C) at each IoU threshold, all areas, largest limit."""
    precision: NDArray[np.float64]
    """(T, R, C, A, M) interpolated precision, -1 without ground truth: pycocotools' tensor."""
    recall: NDArray[np.float64]
    """(T, C, A, M) final recall, -1 without ground truth."""
    limits: tuple[int, ...]
    """M ascending limits on the detections of one image and class."""

    @property
    def per_class(self) -> dict[str, NDArray[np.float64]]:
        """(C,) columns AP, AP50, AP75, APS, APM, APL and AR (at the largest limit)."""
        by_class = _missing_to_nan(self.precision[:, :, :, :, -1]).mean(axis=(0, 1))
        return {
            "AP": by_class[:, 0],
            "AP50": self.class_ap[0],
            "AP75": self.class_ap[5],
            **{f"AP{name[0].upper()}": by_class[:, area] for area, name in enumerate(AREA_NAMES) if area},
            "AR": _missing_to_nan(self.recall[:, :, 0, -1]).mean(axis=0),
        }


def coco_average_precision(
    dataset: Dataset, table: DetectionTable, *, backend: Backend = "hotcoco", max_detections: int = 100
) -> CocoMetrics:
    """AP of `table` on `dataset`; silent. Without detections every AP with ground truth is 0.

    At most `max_detections` best rows of one image and class count. Per-class columns are in label order.
    """
    limits = tuple(sorted({min(limit, max_detections) for limit in (1, 10, max_detections)}))
    evaluate = {"hotcoco": _evaluate_hotcoco, "pycocotools": _evaluate_pycocotools}[backend]
    precision, recall = evaluate(_Columns.number(dataset, table), limits)
    class_ap = _missing_to_nan(precision[:, :, :, 0, -1]).mean(axis=1)
    summary: dict[str, float | None] = {"AP": _mean(precision[:, :, :, 0, -1])}
    for index, threshold in enumerate(IOU_THRESHOLDS):
        summary[f"AP{round(threshold * 100)}"] = _mean(precision[index, :, :, 0, -1])
    for area, name in enumerate(AREA_NAMES[1:], start=1):
        summary[f"AP{name[0].upper()}"] = _mean(precision[:, :, :, area, -1])
    for index, limit in enumerate(limits):
        summary[f"AR{limit}"] = _mean(recall[:, :, 0, index])
    for area, name in enumerate(AREA_NAMES[1:], start=1):
        summary[f"AR{name[0].upper()}"] = _mean(recall[:, :, area, -1])
    return CocoMetrics(summary, class_ap, precision, recall, limits)


def image_ranks(dataset: Dataset) -> NDArray[np.int64]:
    """(N,) place of each image when images are ordered by id: numbers first, then names."""
    order = sorted(range(len(dataset)), key=lambda i: (isinstance(dataset.image_ids[i], str), dataset.image_ids[i]))
    ranks = np.empty(len(dataset), dtype=np.int64)
    ranks[order] = np.arange(len(dataset))
    return ranks


@dataclass(frozen=True, eq=False)
class _Columns:
    """Ground truth and detections numbered as both backends want them, ids from 1."""

    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    truth_image: NDArray[np.int64]
    truth_category: NDArray[np.int64]
    truth_xywh: NDArray[np.float64]
    truth_area: NDArray[np.float64]
    truth_crowd: NDArray[np.bool_]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: NDArray[np.float64]
    score: NDArray[np.float64]

    @classmethod
    def number(cls, dataset: Dataset, table: DetectionTable) -> "_Columns":
        ranks = image_ranks(dataset)
        sizes = np.empty_like(dataset.image_sizes)
        sizes[ranks] = dataset.image_sizes
        return cls(
            images=[
                {"id": number, "width": width, "height": height, "file_name": ""}
                for number, (height, width) in enumerate(sizes.tolist(), start=1)
            ],
            categories=[{"id": label, "name": str(label)} for label in range(1, len(dataset.categories) + 1)],
            truth_image=ranks[dataset.image_of_row] + 1,
            truth_category=dataset.labels + 1,
            truth_xywh=dataset.boxes_xywh,
            truth_area=dataset.areas,
            truth_crowd=dataset.is_crowd | dataset.is_difficult,
            image=ranks[table.image_index] + 1,
            category=table.labels + 1,
            xywh=table.boxes_xywh,
            score=table.scores,
        )


def _evaluate_hotcoco(columns: _Columns, limits: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """precision (T, R, C, A, M) and recall (T, C, A, M)."""
    import hotcoco

    truth = hotcoco.COCO.from_arrays(
        columns.images,
        columns.categories,
        columns.truth_image,
        columns.truth_category,
        columns.truth_xywh,
        ids=np.arange(1, len(columns.truth_image) + 1),
        area=columns.truth_area,
        iscrowd=columns.truth_crowd,
    )
    rows = np.column_stack([columns.image, columns.xywh, columns.score, columns.category])
    evaluation: Any = hotcoco.COCOeval(truth, truth.load_res(rows), "bbox")
    _set_parameters(evaluation.params, limits)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _evaluate_pycocotools(
    columns: _Columns, limits: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """precision (T, R, C, A, M) and recall (T, C, A, M)."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def load(image: Any, category: Any, xywh: Any, area: Any, crowd: Any, score: Any) -> Any:
        # Not COCO.loadRes: it fails on an empty list, and prints.
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "score")
        ids = np.arange(1, len(image) + 1)
        rows = [column.tolist() for column in (ids, image, category, xywh, area, crowd.astype(np.int64), score)]
        coco = COCO()
        coco.dataset = {
            "images": columns.images,
            "categories": columns.categories,
            "annotations": [dict(zip(keys, row, strict=True)) for row in zip(*rows, strict=True)],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()):
        truth = load(
            columns.truth_image,
            columns.truth_category,
            columns.truth_xywh,
            columns.truth_area,
            columns.truth_crowd,
            np.zeros(len(columns.truth_image)),
        )
        found = load(
            columns.image,
            columns.category,
            columns.xywh,
            columns.xywh[:, 2] * columns.xywh[:, 3],
            np.zeros(len(columns.image), dtype=bool),
            columns.score,
        )
        evaluation = COCOeval(truth, found, "bbox")
        _set_parameters(evaluation.params, limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _set_parameters(parameters: Any, limits: tuple[int, ...]) -> None:
    """Says everything that the numbers depend on; both libraries name these fields alike."""
    parameters.iouThrs = IOU_THRESHOLDS
    parameters.recThrs = RECALL_THRESHOLDS
    parameters.areaRng = _AREA_RANGES
    parameters.areaRngLbl = list(AREA_NAMES)
    parameters.maxDets = list(limits)


def _mean(values: NDArray[np.float64]) -> float | None:
    available = values[values > -1]
    return float(available.mean()) if available.size else None


def _missing_to_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values > -1, values, np.nan)
