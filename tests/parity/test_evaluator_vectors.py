"""AP against numbers that other evaluators have published, or that pycocotools gave where `expected.json` says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.samples import Category, Dataset
from detector.evaluation.results import DetectionTable
from detector.evaluation.voc_ap import VocCurve, VocMatches, voc_average_precision
from runyard.scoring.evaluate import evaluate_files

COCO_CASES = {
    "coco_val2014_fake100": ("gt_instances_val2014_100.json", "dt_fakebbox100_results.json"),
    "coco_padilla_bboxarea": ("gt.json", "dt.json"),
    "hotcoco_basic": ("gt.json", "dt.json"),
}
OUR_NAMES = {"APs": "APS", "APm": "APM", "APl": "APL", "ARs": "ARS", "ARm": "ARM", "ARl": "ARL"}


@pytest.fixture
def vectors(shared_data) -> Path:
    return shared_data / "evaluator_vectors"


def close(value: float | None, expected: float) -> bool:
    return expected == -1 if value is None else value == pytest.approx(expected, abs=1e-6, rel=0)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("case", COCO_CASES)
def test_coco(vectors, case, backend):
    folder = vectors / case
    report = evaluate_files(*(folder / name for name in COCO_CASES[case]), backend=backend)
    expected = json.loads((folder / "expected.json").read_text())
    published = [values for title, values in expected.items() if "published" in title and isinstance(values, dict)]
    recomputed = expected["recomputed_with_pycocotools"]
    for values in (*published, recomputed["stats"]):
        for name, value in values.items():
            assert close(report["metrics"][OUR_NAMES.get(name, name)], value), name
    for threshold, value in recomputed["AP_per_iou"].items():
        assert close(report["metrics"][f"AP{round(100 * float(threshold))}"], value), threshold
    ours = {f"{row['id']}:{row['name']}": row["AP"] for row in report["per_class"]}
    assert set(ours) == set(recomputed["AP_per_category"])
    for name, value in recomputed["AP_per_category"].items():
        assert close(ours[name], value), name


def coco_files(folder: Path, padilla: Path) -> tuple[Path, Path]:
    """Padilla's text files as COCO JSON."""
    files = sorted(path.name for path in (padilla / "gts").iterdir())

    def rows(part: str, numbers: int) -> list[tuple[int, list[float]]]:
        lines = [(i, line.split()) for i, name in enumerate(files) for line in (padilla / part / name).open()]
        return [(i, [float(word) for word in words[-numbers:]]) for i, words in lines if words]

    truth = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(files)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": box} for n, (i, box) in enumerate(rows("gts", 4))
        ],
    }
    found = [
        {"image_id": i, "category_id": 1, "score": score, "bbox": box} for i, (score, *box) in rows("dets", 5)
    ]  # fmt: skip
    for name, content in (("truth.json", truth), ("found.json", found)):
        (folder / name).write_text(json.dumps(content))
    return folder / "truth.json", folder / "found.json"


@pytest.mark.parametrize(("points", "protocol"), [("eleven_point", "voc07"), ("every_point", "voc12")])
def test_voc_padilla(vectors, tmp_path, points, protocol):
    # Its tool takes x + width for the inclusive corner and then adds 1: offset 1 on half-open boxes.
    files = coco_files(tmp_path, vectors / "voc_padilla_case1")
    expected = json.loads((vectors / "voc_padilla_case1" / "expected.json").read_text())
    published = {float(key): value for key, value in expected["published (tests/test_eval_pascal.py)"][points].items()}
    report = evaluate_files(*files, protocol=protocol, offset=1.0)
    for iou in (0.5, 0.75):
        assert close(report["metrics"][f"AP{100 * iou:.0f}"], published[iou])
    boxes, rows = json.loads(files[0].read_text())["annotations"], json.loads(files[1].read_text())
    dataset = make_dataset(
        [np.array([b["bbox"] for b in boxes if b["image_id"] == i]).reshape(-1, 4) for i in range(7)],
        [np.zeros(sum(b["image_id"] == i for b in boxes), dtype=np.int64) for i in range(7)],
    )
    table = DetectionTable(
        np.array([row["image_id"] for row in rows]), np.zeros(len(rows), dtype=np.int64),
        np.array([row["bbox"] for row in rows]), np.array([row["score"] for row in rows]),
    )  # fmt: skip
    ious = tuple(published)
    metrics = voc_average_precision(dataset, table, iou=ious, points="11" if protocol == "voc07" else "area")
    assert all(close(value, published[iou]) for value, iou in zip(metrics.mean_ap, ious, strict=True))


def make_dataset(boxes: list[Any], labels: list[Any], difficult: list[Any] | None = None, classes: int = 1) -> Dataset:
    counts = [len(part) for part in labels]
    xywh = np.concatenate(boxes).astype(np.float64)
    flags = np.concatenate(difficult).astype(bool) if difficult else np.zeros(len(xywh), dtype=bool)
    return Dataset(
        name="vectors",
        categories=tuple(Category(label + 1, str(label)) for label in range(classes)),
        image_paths=tuple(Path(f"/nowhere/{i}") for i in range(len(counts))),
        image_ids=tuple(range(len(counts))),
        image_sizes=np.full((len(counts), 2), 100, dtype=np.int64),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=xywh,
        labels=np.concatenate(labels).astype(np.int64),
        areas=xywh[:, 2] * xywh[:, 3],
        is_crowd=np.zeros(len(xywh), dtype=bool),
        is_difficult=flags,
    )


def to_xywh(yxyx: list[list[float]]) -> Any:
    y1, x1, y2, x2 = np.array(yxyx, dtype=np.float64).T
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)


@pytest.mark.parametrize("offset", [0.0, 1.0])  # its cases hold under either
def test_voc_chainercv_curves(vectors, offset):
    cases = json.loads((vectors / "voc_chainercv_synthetic" / "cases.json").read_text())["prec_rec_cases"]
    assert len(cases) == 4
    for case in cases:
        classes = 1 + max(label for part in (*case["pred_labels"], *case["gt_labels"]) for label in part)
        dataset = make_dataset(
            [to_xywh(part) for part in case["gt_bboxes"]], case["gt_labels"], case.get("gt_difficults"), classes
        )
        table = DetectionTable(
            image_index=np.repeat(np.arange(len(case["pred_labels"])), [len(part) for part in case["pred_labels"]]),
            labels=np.concatenate(case["pred_labels"]),
            boxes_xywh=np.concatenate([to_xywh(part) for part in case["pred_bboxes"]]),
            scores=np.concatenate(case["pred_scores"]).astype(np.float64),
        )
        for expected in case["expected"]:
            matches = VocMatches.match(dataset, table, offset)
            curves = [matches.curve(label, expected["iou_thresh"]) for label in range(len(dataset.categories))]
            for curve, precision, recall in zip(curves, expected["prec"], expected["rec"], strict=True):
                # Where it has nan (nothing counted so far) or None (no such class), we have 0 or no rows.
                np.testing.assert_allclose(curve.precision, np.nan_to_num(np.array(precision or [], dtype=float)))
                if recall is None:
                    assert np.isnan(curve.recall).all()
                else:
                    np.testing.assert_allclose(curve.recall, recall)


def test_voc_chainercv_average_precision(vectors):
    case = json.loads((vectors / "voc_chainercv_synthetic" / "cases.json").read_text())["ap_from_prec_rec"]
    for label, (precision, recall) in enumerate(zip(case["prec"], case["rec"], strict=True)):
        if precision is None:
            assert case["ap_area"][label] == case["ap_11point"][label] == "nan"
            precision, recall = [0.0], [np.nan]
        curve = VocCurve(np.nan_to_num(np.array(precision, dtype=float)), np.array(recall, dtype=float))
        for points, key in (("area", "ap_area"), ("11", "ap_11point")):
            expected = float(case[key][label])
            np.testing.assert_allclose(curve.average_precision(points), expected, rtol=0, atol=1e-6)
