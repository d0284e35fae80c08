"""Scores a result file against an annotation file: what `runyard evaluate` does, from paths to a report."""

import hashlib
import importlib.metadata
import io
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detector.data.formats.coco import parse_coco
from detector.data.parsed_split import to_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError, InputError, ResultFileError
from detector.evaluation.coco_ap import IOU_THRESHOLDS, Backend, coco_average_precision
from detector.evaluation.correlation import confidence_correlation, true_ious
from detector.evaluation.results import DetectionTable, read_coco_results
from detector.evaluation.voc_ap import Points, voc_average_precision
from detector.files import write_json

Protocol = Literal["coco", "voc07", "voc12"]

_VOC_POINTS: dict[str, Points] = {"voc07": "11", "voc12": "area"}
_VERSIONS = ("runyard", "numpy", "hotcoco", "pycocotools")


def evaluate_files(
    annotations: Path,
    detections: Path,
    *,
    protocol: Protocol = "coco",
    backend: Backend = "hotcoco",
    offset: float = 1.0,
    max_detections: int = 100,
    json_out: Path | None = None,
) -> dict[str, Any]:
    """The report on a result file: plain values, fractions from 0 to 1, None where there is no ground truth.

    Args:
        annotations: COCO JSON; every category of it counts, its images need not be there.
        detections: COCO result JSON; rows may also carry "class_score" and "iou", ours do.
        protocol: 'coco', 'voc07' (11 points) or 'voc12' (area); VOC AP is given at 0.50:0.05:0.95.
        backend: what computes COCO AP.
        offset: added to widths and heights by the VOC protocols: 1 for inclusive corners (the devkit), 0 for half-open.
        max_detections: COCO's limit for one image and class.
        json_out: the report is also written here, whole or not at all.

    Raises InputError for files that cannot be read, do not fit together, or must not be overwritten.
    """
    if protocol not in ("coco", *_VOC_POINTS):
        raise ConfigError("is not known", field="protocol", value=protocol, remedy="Use coco, voc07 or voc12")
    if backend not in ("hotcoco", "pycocotools"):
        raise ConfigError("is not known", field="backend", value=backend, remedy="Use hotcoco or pycocotools")
    if max_detections < 1:
        raise ConfigError("must be at least 1", field="max_detections", value=max_detections)
    if offset not in (0, 1):
        raise ConfigError("must be 1 (inclusive corners) or 0 (half-open)", field="offset", value=offset)
    if json_out is not None:
        _check_output(json_out, annotations, detections)
    dataset = _load(annotations)
    table = read_coco_results(detections, dataset)
    settings: dict[str, Any] = {"backend": backend, "max_detections": max_detections}
    if protocol != "coco":
        settings = {"points": _VOC_POINTS[protocol], "offset": offset}
    metrics, per_class = (
        _coco_metrics(dataset, table, backend, max_detections)
        if protocol == "coco"
        else _voc_metrics(dataset, table, _VOC_POINTS[protocol], offset)
    )
    report = {
        "protocol": protocol,
        "settings": settings,
        "images": len(dataset),
        "ground_truth": len(dataset.labels),
        "detections": len(table),
        "metrics": metrics,
        "per_class": [
            {"id": category.id, "name": category.name, **values}
            for category, values in zip(dataset.categories, per_class, strict=True)
        ],
        "correlation_with_true_iou": _correlations(dataset, table),
        "inputs": {
            name: {"path": str(path.absolute()), "sha256": _sha256(path)}
            for name, path in (("annotations", annotations), ("detections", detections))
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _VERSIONS},
    }
    if json_out is not None:
        try:
            write_json(json_out, report, indent=2, non_finite="error")
        except OSError as error:
            raise InputError(f"cannot be written ({error.strerror or error})", file=json_out) from error
    return report


def render_report(report: dict[str, Any], width: int = 120) -> str:
    """The report as text tables in percent; 'n/a' where there is no ground truth."""
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    counts = ", ".join(
        f"{report[name]:,} {name.replace('_', ' ')}" for name in ("images", "ground_truth", "detections")
    )
    whole = Table()
    whole.add_column("metric")
    whole.add_column("%", justify="right")
    for name, value in report["metrics"].items():
        whole.add_row(name, _percent(value))

    names = [name for name in next(iter(report["per_class"]), {}) if name not in ("id", "name")]
    by_class = Table()
    by_class.add_column("class", overflow="fold")
    for name in names:
        by_class.add_column(name, justify="right")
    for row in report["per_class"]:
        by_class.add_row(_harmless(row["name"]), *(_percent(row[name]) for name in names))

    correlations = Table()
    correlations.add_column("correlation with true IoU")
    for heading in ("Pearson", "Spearman", "n"):
        correlations.add_column(heading, justify="right")
    for name, values in report["correlation_with_true_iou"].items():
        coefficients = (values["pearson"], values["spearman"])
        shown = ["n/a" if value is None else f"{value:.4f}" for value in coefficients]
        correlations.add_row(name, *shown, f"{values['n']:,}")

    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(f"{report['protocol']} ({settings})\n{counts}", whole, by_class, correlations, markup=False)
    return capture.get()


def _load(annotations: Path) -> Dataset:
    """The file's ground truth with every category it lists, by id: result files go by ids, so that categories without
    boxes, super-categories and equal names are all kept here, unlike in training."""
    split = parse_coco(annotations, None, annotations.stem)
    by_id = tuple(replace(category, name=str(category.id)) for category in split.categories)
    positions = {category.name: position for position, category in enumerate(by_id)}
    dataset = to_dataset(replace(split, categories=by_id), tuple(positions), positions)
    names = (category.name for category in split.categories)
    categories = (replace(category, name=name) for category, name in zip(dataset.categories, names, strict=True))
    return replace(dataset, categories=tuple(categories))


def _coco_metrics(
    dataset: Dataset, table: DetectionTable, backend: Backend, max_detections: int
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    result = coco_average_precision(dataset, table, backend=backend, max_detections=max_detections)
    columns = result.per_class
    rows = [
        {name: _known(values[label]) for name, values in columns.items()} for label in range(len(dataset.categories))
    ]
    return result.summary, rows


def _voc_metrics(
    dataset: Dataset, table: DetectionTable, points: Points, offset: float
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    result = voc_average_precision(dataset, table, iou=IOU_THRESHOLDS.tolist(), points=points, offset=offset)
    names = [f"AP{round(100 * threshold)}" for threshold in result.iou_thresholds]
    metrics = {"AP": result.ap, **dict(zip(names, result.mean_ap, strict=True))}
    rows = [
        {
            "AP": _known(column.mean()),
            "AP50": _known(column[names.index("AP50")]),
            "AP75": _known(column[names.index("AP75")]),
        }
        for column in result.class_ap.T
    ]
    return metrics, rows


def _correlations(dataset: Dataset, table: DetectionTable) -> dict[str, dict[str, float | int | None]]:
    """Of the final confidence always, of its two factors where any row has them."""
    true_iou = true_ious(dataset, table)
    report: dict[str, dict[str, float | int | None]] = {}
    for name, values in (("score", table.scores), ("class_score", table.class_scores), ("iou", table.ious)):
        result = confidence_correlation(values, true_iou)
        if name == "score" or result.n:
            report[name] = {"pearson": result.pearson, "spearman": result.spearman, "n": result.n}
    return report


def _check_output(json_out: Path, *inputs: Path) -> None:
    if json_out.is_dir():
        raise InputError("is a folder, a file is needed for the report", file=json_out)
    if any(json_out.resolve() == path.resolve() for path in inputs):
        raise InputError("is an input of this evaluation and would be overwritten", file=json_out)


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
    return None if value != value else float(value)


def _harmless(name: str) -> Text:
    """A class name as it stands: no markup such as '[red]' in it is obeyed, no escape sequence reaches the terminal."""
    return Text("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name))


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{100 * value:.2f}"
