"""B30: a VOC run's own detections can be scored by `runyard evaluate`, to the same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.cache import save_dataset
from detector.data.formats import open_splits
from detector.data.samples import Dataset
from detector.errors import ConfigError, ResultFileError
from detector.evaluation.metrics import score_detections
from detector.evaluation.results import DetectionTable, write_coco_results
from runyard import cli
from runyard.scoring.evaluate import evaluate_files


@pytest.fixture(scope="module")
def bccd(shared_data: Path) -> Path:
    return shared_data / "bccd"


@pytest.fixture(scope="module")
def run(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, float], Path, Path]:
    """Validation split, metrics, result file and saved columns of a run on BCCD: detections near the objects."""
    _, dataset = open_splits(bccd, "trainval", "test")
    random = np.random.default_rng(0)
    chosen = random.integers(0, len(dataset.labels), 1500)
    boxes = dataset.boxes_xywh[chosen] + random.normal(0, 6, (1500, 4))
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + 1
    table = DetectionTable(
        dataset.image_of_row[chosen], dataset.labels[chosen], boxes, random.random(1500), random.random(1500)
    )
    folder = tmp_path_factory.mktemp("run")
    write_coco_results(table, dataset, folder / "detections.json", factors=True)
    save_dataset(dataset, folder / "val.npz")
    return dataset, score_detections(dataset, table, "voc"), folder / "detections.json", folder / "val.npz"


@pytest.mark.parametrize("source", ["devkit", "columns"])
@pytest.mark.parametrize(("protocol", "prefix"), [("voc07", "VOC07_"), ("voc12", "VOC12_"), ("coco", "")])
def test_B30_a_voc_run_has_the_same_numbers_by_evaluate(
    bccd: Path, run: Any, source: str, protocol: Any, prefix: str
) -> None:
    _, metrics, found, columns = run
    truth, split = (bccd, "test") if source == "devkit" else (columns, None)
    report = evaluate_files(truth, found, split=split, protocol=protocol)
    for name, value in report["metrics"].items():
        assert value == pytest.approx(metrics[f"val/{prefix}{name}"], abs=1e-10)
    assert report["metrics"]["AP50"] > 0.3
    assert report["warnings"] == []
    if protocol != "coco":
        assert report["settings"]["offset"] == 1.0
    assert report["correlation_with_true_iou"]["score"]["n"] == 1500
    assert [(row["id"], row["name"]) for row in report["per_class"]] == [(1, "Platelets"), (2, "RBC"), (3, "WBC")]


def test_B30_on_the_command_line(bccd: Path, run: Any, tmp_path: Path) -> None:
    _, metrics, found, _ = run
    arguments = ["--annotations", str(bccd), "--split", "test", "--detections", str(found), "--protocol", "voc07"]
    assert cli.main(["evaluate", *arguments, "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["metrics"]["AP"] == pytest.approx(metrics["val/VOC07_AP"], abs=1e-10)


def test_B30_the_order_of_the_classes_can_be_stated(bccd: Path, run: Any, tmp_path: Path) -> None:
    """The names of a split that lacks a class would number the others differently than the detector does."""
    _, _, found, _ = run
    rows = json.loads(found.read_text())
    for row in rows:
        row["category_id"] = {1: 3, 2: 1, 3: 2}[row["category_id"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(rows))
    ordered = evaluate_files(bccd, other, split="test", classes=("RBC", "WBC", "Platelets"), protocol="voc12")
    plain = evaluate_files(bccd, found, split="test", protocol="voc12")
    assert ordered["metrics"] == pytest.approx(plain["metrics"], abs=1e-10)
    with pytest.raises(ResultFileError, match="category_id 3 is not among the 2 categories"):
        evaluate_files(bccd, other, split="test", classes=("RBC", "WBC"))


def coco_export(dataset: Dataset, inclusive_widths: bool) -> dict[str, Any]:
    """The ground truth as converters of VOC data write it: string ids, w = x2 - x1 of inclusive corners or + 1."""
    boxes = dataset.boxes_xywh - ([0, 0, 1, 1] if inclusive_widths else [0, 0, 0, 0])
    return {
        "images": [
            {"id": name, "width": int(width), "height": int(height)}
            for name, (height, width) in zip(dataset.image_ids, dataset.image_sizes, strict=True)
        ],
        "categories": [{"id": category.id, "name": category.name} for category in dataset.categories],
        "annotations": [
            {
                "id": row + 1,
                "image_id": dataset.image_ids[image],
                "category_id": int(label) + 1,
                "bbox": box,
                "ignore": int(difficult),
            }
            for row, (image, label, box, difficult) in enumerate(
                zip(dataset.image_of_row, dataset.labels, boxes.tolist(), dataset.is_difficult, strict=True)
            )
        ],
    }


@pytest.mark.parametrize(("inclusive_widths", "offset"), [(False, 0.0), (True, 1.0)])
def test_B30_string_ids_and_the_right_offset_give_the_devkits_numbers(
    run: Any, tmp_path: Path, inclusive_widths: bool, offset: float
) -> None:
    dataset, metrics, found, _ = run
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(coco_export(dataset, inclusive_widths)))
    rows = json.loads(found.read_text())
    for row in rows:
        row["bbox"] = [value - (inclusive_widths and axis > 1) for axis, value in enumerate(row["bbox"])]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    report = evaluate_files(truth, results, protocol="voc07", offset=offset)
    for name, value in report["metrics"].items():
        assert value == pytest.approx(metrics[f"val/VOC07_{name}"], abs=1e-10)
    with pytest.raises(ConfigError, match=r"offset: needed: a COCO file does not say .*--offset 0 where width = x2"):
        evaluate_files(truth, results, protocol="voc07")


def test_B30_what_makes_no_sense_is_refused(bccd: Path, run: Any, tmp_path: Path) -> None:
    dataset, _, found, columns = run
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(coco_export(dataset, False)))
    with pytest.raises(ConfigError, match="offset: contradicts the annotations: corners of VOC folders are inclusive"):
        evaluate_files(bccd, found, split="test", protocol="voc07", offset=0.0)
    with pytest.raises(ConfigError, match="split: needed for a folder"):
        evaluate_files(bccd, found)
    for file in (truth, columns):
        with pytest.raises(ConfigError, match="split: has a meaning for folders only"):
            evaluate_files(file, found, split="test")
        with pytest.raises(ConfigError, match="classes: have a meaning for folders only"):
            evaluate_files(file, found, classes=("RBC",))
