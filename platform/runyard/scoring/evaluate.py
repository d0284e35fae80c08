"""Scores a result file against annotations: what `runyard evaluate` does, from paths to a report."""

import hashlib
import importlib.metadata
import platform
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from detector.data.fingerprint import fingerprint
from detector.data.json_reading import describe_repeated
from detector.data.samples import Dataset
from detector.errors import ConfigError, InputError, ResultFileError
from detector.evaluation import metrics
from detector.evaluation.coco_ap import Backend
from detector.evaluation.metrics import Scores, Settings
from detector.evaluation.plausibility import detection_findings, ground_truth_findings
from detector.evaluation.results import read_coco_results
from detector.files import write_json
from runyard.scoring.ground_truth import GroundTruth, read_ground_truth
from runyard.scoring.outputs import REPORT, check_output

Protocol = Literal["coco", "voc07", "voc12"]

_VOC_POINTS = {"voc07": "11", "voc12": "area"}
_OWN_TABLES = ("coco", "voc07", "voc12", "correlation", "counts")
"""Evaluators that the report shows in a place of their own."""
_CORRELATED = {"score": "confidence", "class_score": "class_score", "iou": "predicted_iou"}
"""Member of the result file -> name in the metrics."""
_VERSIONS = ("runyard", "numpy", "hotcoco", "pycocotools")


def evaluate_files(
    annotations: Path,
    detections: Path,
    *,
    split: str | None = None,
    classes: tuple[str, ...] | None = None,
    protocol: Protocol = "coco",
    backend: Backend | None = None,
    offset: float | None = None,
    max_detections: int | None = None,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """The report on a result file: plain values, fractions from 0 to 1, None without ground truth.

    Args:
        annotations, split, classes: ground truth, see `read_ground_truth`; every category of a COCO file counts.
        detections: COCO result JSON with the ids of the annotations; rows may also carry "class_score" and "iou", ours
            do. Boxes are half-open or inclusive as the annotations are.
        protocol: 'coco', 'voc07' (11 points) or 'voc12' (area); VOC AP is given at 0.50:0.05:0.95.
        backend: 'hotcoco' (None) or 'pycocotools', which computes COCO AP.
        offset: added to widths and heights by the VOC protocols. None: 1 for VOC folders, whose corners are inclusive,
            and 0 for YOLO's. A COCO file does not say which it needs: 1 where its widths are x2 - x1 of inclusive
            corners, 0 where they are x2 - x1 + 1 or half-open.
        max_detections: COCO's limit for one image and class; None: 100.
        json_out: the report is also written here, whole or not at all; a symbolic link is followed. A new file, or an
            earlier report, which is replaced.

    Raises InputError for files that cannot be read, do not fit together, or must not be overwritten, and ConfigError
    for settings that are unknown or have no effect under the protocol.
    """
    _check_settings(protocol, backend, offset, max_detections)
    if json_out is not None:
        json_out = check_output(json_out, "--json", REPORT, annotations, detections)
    truth = read_ground_truth(annotations, split, classes, honours_ignore_marks=protocol != "coco")
    settings = Settings(backend=backend or "hotcoco", max_detections=max_detections or 100)
    shown: dict[str, Any] = {"backend": settings.backend, "max_detections": settings.max_detections}
    if protocol != "coco":
        settings = Settings(voc_offset=_offset(offset, truth))
        shown = {"points": _VOC_POINTS[protocol], "offset": settings.voc_offset}
    repeated_keys: Counter[str] = Counter()
    dataset = truth.dataset
    table = read_coco_results(detections, dataset, repeated_keys)
    scores = {
        evaluator.name: evaluator.compute(dataset, table, settings)
        for evaluator in metrics.EVALUATORS
        if evaluator.name == protocol or (evaluator.name not in _VOC_POINTS and evaluator.name != "coco")
    }
    report = {
        "protocol": protocol,
        "settings": shown,
        "warnings": [
            *truth.notes,
            *describe_repeated(repeated_keys, detections),
            *ground_truth_findings(dataset),
            *detection_findings(dataset, table),
        ],
        "images": len(dataset),
        "ground_truth": len(dataset.labels),
        "detections": len(table),
        "metrics": _without_prefix(scores[protocol].values, protocol),
        "per_class": _per_class(dataset, scores[protocol], protocol),
        "correlation_with_true_iou": _correlations(scores["correlation"]),
        "further_metrics": {name: dict(result.values) for name, result in scores.items() if name not in _OWN_TABLES},
        "inputs": {
            "annotations": _describe(annotations, split, dataset),
            "detections": {"path": str(detections.absolute()), "sha256": _sha256(detections)},
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS},
    }
    if json_out is not None:
        try:
            write_json(json_out, report, indent=2, non_finite="error")
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror or error})", file=json_out) from error
    return report


def _check_settings(protocol: str, backend: str | None, offset: float | None, max_detections: int | None) -> None:
    if protocol not in ("coco", *_VOC_POINTS):
        raise ConfigError("is not known", field="protocol", value=protocol, remedy="Use coco, voc07 or voc12")
    if backend not in (None, "hotcoco", "pycocotools"):
        raise ConfigError("is not known", field="backend", value=backend, remedy="Use hotcoco or pycocotools")
    if max_detections is not None and max_detections < 1:
        raise ConfigError("must be at least 1", field="max_detections", value=max_detections)
    if offset not in (None, 0, 1):
        raise ConfigError("must be 1 (inclusive corners) or 0 (half-open)", field="offset", value=offset)
    without_effect = (
        {"offset": offset} if protocol == "coco" else {"backend": backend, "max_detections": max_detections}
    )
    for name, value in without_effect.items():
        if value is not None:
            raise ConfigError(
                f"has no effect under protocol {protocol}",
                field=name,
                value=value,
                remedy=f"Leave --{name.replace('_', '-')} out, or use another --protocol",
            )


def _offset(offset: float | None, truth: GroundTruth) -> float:
    """The offset of VOC's protocols for this ground truth; ConfigError where it is missing or contradicts it."""
    if truth.convention == "inclusive" and offset == 0:
        raise ConfigError(
            "contradicts the annotations: corners of VOC folders are inclusive",
            field="offset",
            value=offset,
            remedy="Leave --offset out",
        )
    if offset is not None:
        return float(offset)
    if truth.convention is None:
        raise ConfigError(
            "needed: a COCO file does not say how its widths were counted",
            field="offset",
            remedy="Give --offset 0 where width = x2 - x1 + 1 or boxes are half-open, as in COCO's own files and in "
            "Runyard's results; --offset 1 where width = x2 - x1 of VOC's inclusive corners",
        )
    return 1.0 if truth.convention == "inclusive" else 0.0


def _without_prefix(values: Any, protocol: str) -> dict[str, float | None]:
    prefix = {"voc07": "VOC07_", "voc12": "VOC12_"}.get(protocol, "")
    return {name.removeprefix(prefix): value for name, value in values.items()}


def _per_class(dataset: Dataset, scores: Scores, protocol: str) -> list[dict[str, Any]]:
    columns = {name: [_known(value) for value in column.tolist()] for name, column in scores.per_class.items()}
    return [
        {"id": category.id, "name": category.name, **{name: column[label] for name, column in columns.items()}}
        for label, category in enumerate(dataset.categories)
    ]


def _correlations(scores: Scores) -> dict[str, dict[str, float | int | None]]:
    """The final confidence always, its two factors where any row has them."""
    report: dict[str, dict[str, float | int | None]] = {}
    for member, name in _CORRELATED.items():
        n = int(scores.values[f"correlation_n_{name}"] or 0)
        if member == "score" or n:
            coefficients = {kind: scores.values[f"{kind}_{name}"] for kind in ("pearson", "spearman")}
            report[member] = {**coefficients, "n": n}
    return report


def _describe(annotations: Path, split: str | None, dataset: Dataset) -> dict[str, str]:
    path = {"path": str(annotations.absolute())}
    if split is None:
        return path | {"sha256": _sha256(annotations)}
    return path | {"split": split, "fingerprint": fingerprint(dataset)}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResultFileError(f"cannot be read ({error.strerror or error})", file=path) from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _known(value: float) -> float | None:
    return None if value != value else value
