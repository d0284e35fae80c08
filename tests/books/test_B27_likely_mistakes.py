"""B27: files that can be scored but should not be believed give their result, and a warning that names the mistake."""

import copy
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.formats import open_dataset, open_splits
from detector.evaluation.plausibility import detection_findings, ground_truth_findings
from detector.evaluation.results import DetectionTable
from runyard import cli
from runyard.runs.data_findings import find_mistakes
from runyard.scoring.evaluate import evaluate_files

Rows = list[dict[str, Any]]
Change = Callable[[dict[str, Any], Rows], str | None]


def make_files() -> tuple[dict[str, Any], Rows]:
    """30 images of 200 x 100 px with three objects each of ids 1 to 5, and detections near all of them."""
    random = np.random.default_rng(0)
    annotations: Rows = []
    for image in range(30):
        for _ in range(3):
            w, h = random.uniform(10, 40, 2).round(1).tolist()
            x, y = float(random.uniform(0, 200 - w)), float(random.uniform(0, 100 - h))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(random.integers(2, 5)),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    truth = {
        "images": [{"id": image, "width": 200, "height": 100} for image in range(30)],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 6)],
        "annotations": annotations,
    }
    found = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": float(random.uniform(0.05, 1))}
        for row in copy.deepcopy(annotations)
    ]
    return truth, found


def every_box(rows: Rows, change: Callable[..., list[float]]) -> None:
    for row in rows:
        row["bbox"] = change(*row["bbox"])


def every_score(found: Rows, change: Callable[[float], float]) -> None:
    for row in found:
        row["score"] = change(row["score"])


def shift_ids(found: Rows, by: int) -> None:
    for row in found:
        row["category_id"] += by


MISTAKES: dict[str, tuple[Callable[[dict[str, Any], Rows], object], str]] = {
    "percent": (lambda t, f: every_score(f, lambda s: 100 * s), "scores lie outside 0 to 1.*look like percent"),
    "logits": (lambda t, f: every_score(f, lambda s: 8 * s - 4), "scores lie outside 0 to 1.*look like logits"),
    "large": (lambda t, f: every_score(f, lambda s: 1000 * s), "are not probabilities"),
    "corners found": (
        lambda t, f: every_box(f, lambda x, y, w, h: [x, y, x + w, y + h]),
        "detected boxes look like corners x1, y1, x2, y2",
    ),
    "corners annotated": (
        lambda t, f: every_box(t["annotations"], lambda x, y, w, h: [x, y, x + w, y + h]),
        "ground-truth boxes look like corners x1, y1, x2, y2",
    ),
    "normalised found": (
        lambda t, f: every_box(f, lambda x, y, w, h: [x / 200, y / 100, w / 200, h / 100]),
        "all 90 detected boxes lie within 0 to 1: they look normalised",
    ),
    "normalised annotated": (
        lambda t, f: every_box(t["annotations"], lambda x, y, w, h: [x / 200, y / 100, w / 200, h / 100]),
        "all 90 ground-truth boxes lie within 0 to 1: they look normalised",
    ),
    "another image size": (
        lambda t, f: every_box(f, lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h]),
        "of 90 detected boxes reach far beyond their image",
    ),
    "rows twice": (lambda t, f: f.extend(copy.deepcopy(f)), "90 of 180 detections repeat an earlier one"),
    "annotations twice": (
        lambda t, f: t["annotations"].extend({**row, "id": row["id"] + 1000} for row in list(t["annotations"])),
        "90 of 180 annotations repeat an earlier one",
    ),
    "ids too low": (lambda t, f: shift_ids(f, -1), "category ids look shifted by one.* category id -1"),
    "ids too high": (lambda t, f: shift_ids(f, 1), "category ids look shifted by one.* category id \\+1"),
    "ids of another file": (
        lambda t, f: (
            f.extend({**row, "score": row["score"] / 2} for row in list(f)),
            [row.update(category_id={2: 4, 3: 5, 4: 2}[row["category_id"]]) for row in f],
        ),
        "none of 18\\d detections that overlap an object has its class",
    ),
    "no area": (lambda t, f: [row.update(area=0) for row in t["annotations"]], "all 90 annotations have area 0"),
    "ignore": (
        lambda t, f: [row.update(ignore=1) for row in t["annotations"][:4]],
        "4 annotations are marked 'ignore' or 'difficult', which COCO's protocol does not know",
    ),
}


def write(folder: Path, truth: object, found: object) -> tuple[Path, Path]:
    files = folder / "truth.json", folder / "found.json"
    for file, content in zip(files, (truth, found), strict=True):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return files


def test_B27_files_without_a_mistake_give_no_warning(tmp_path: Path) -> None:
    assert evaluate_files(*write(tmp_path, *make_files()))["warnings"] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_B27_a_likely_mistake_is_named_and_the_result_stands(
    tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found = make_files()
    change, named = MISTAKES[mistake]
    change(truth, found)
    files = write(tmp_path, truth, found)
    report = evaluate_files(*files)
    assert len(report["warnings"]) == 1
    assert report["metrics"]["AP"] is not None
    assert cli.main(["evaluate", "--annotations", str(files[0]), "--detections", str(files[1])]) == 0
    (printed,) = [line for line in _unwrapped(capsys.readouterr().out) if line.startswith("warning: ")]

    assert re.search(named, report["warnings"][0])
    assert re.search(named, printed)


def _unwrapped(text: str) -> list[str]:
    before, mark, warnings = text.partition("warning: ")
    return [*before.splitlines(), mark + warnings.replace("\n", " ")]


def test_B27_a_key_twice_in_one_object_is_named(tmp_path: Path) -> None:
    truth, found = make_files()
    text = json.dumps(truth)
    twice = text[:-1] + ', "annotations": ' + json.dumps(truth["annotations"][:10]) + "}"
    rows = json.dumps(found).replace('"score":', '"score": 0.5, "score":')
    report = evaluate_files(*write(tmp_path, twice, rows))
    assert report["ground_truth"] == 10
    assert report["warnings"][:2] == [
        "truth.json has a key twice in one object, and the last value counts: 'annotations' in 1 objects",
        "found.json has a key twice in one object, and the last value counts: 'score' in 90 objects",
    ]


@pytest.mark.parametrize("member", ["ignore", "difficult"])
def test_B27_marked_annotations_are_honoured_under_the_voc_protocols(tmp_path: Path, member: str) -> None:
    """The devkit counts neither a difficult object nor the detection of one; COCO's protocol has no such mark."""
    truth, found = make_files()
    plain = evaluate_files(*write(tmp_path, truth, found), protocol="voc12", offset=0.0)
    missed = {**truth["annotations"][0], "id": 1000, "bbox": [150, 60, 20, 20], member: 1}
    truth["annotations"].append(missed)
    marked = evaluate_files(*write(tmp_path, truth, found), protocol="voc12", offset=0.0)
    assert marked["metrics"] == plain["metrics"]
    assert "1 annotations are marked 'ignore' or 'difficult' and treated as VOC's difficult" in marked["warnings"][0]
    missed[member] = 0
    unmarked = evaluate_files(*write(tmp_path, truth, found), protocol="voc12", offset=0.0)
    assert unmarked["metrics"]["AP50"] < plain["metrics"]["AP50"]
    assert unmarked["warnings"] == []


def test_B27_runs_and_doctor_name_a_mistake_in_the_annotations(tiny_data: Path, tmp_path: Path) -> None:

    data = tmp_path / "shapes"
    shutil.copytree(tiny_data, data)
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    every_box(content["annotations"], lambda x, y, w, h: [x, y, x + w, y + h])
    file.write_text(json.dumps(content))
    (finding,) = find_mistakes(*open_splits(data, "train", "val"))
    assert finding.startswith("shapes/train: ground-truth boxes look like corners")


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("coco2017_slice", ("train", "val")),
        ("aquarium", ("train", "val")),
        ("bccd", ("train", "val", "test")),
    ],
)
def test_B27_real_data_give_no_alarm(shared_data: Path, name: str, splits: tuple[str, ...]) -> None:
    for split in splits:
        assert ground_truth_findings(open_dataset(shared_data / name, split)) == []


@pytest.mark.parametrize(
    ("truth", "found"),
    [
        ("hotcoco_basic/gt.json", "hotcoco_basic/dt.json"),
        ("coco_val2014_fake100/gt_instances_val2014_100.json", "coco_val2014_fake100/dt_fakebbox100_results.json"),
        ("coco_padilla_bboxarea/gt.json", "coco_padilla_bboxarea/dt.json"),
    ],
)
def test_B27_real_results_give_no_alarm(
    shared_data: Path, truth: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shared_data / "evaluator_vectors"
    with caplog.at_level(logging.WARNING):
        assert evaluate_files(folder / truth, folder / found)["warnings"] == []


def test_B27_a_poor_detector_gives_no_alarm(shared_data: Path) -> None:
    """Boxes of objects with classes at random, and boxes at random that overshoot their image by a few pixels."""

    dataset = open_dataset(shared_data / "coco2017_slice", "val")
    random = np.random.default_rng(0)
    for classes in (80, 3):
        chosen = random.integers(0, len(dataset.labels), 2000)
        boxes = dataset.boxes_xywh[chosen] + random.normal(0, 4, (2000, 4))
        boxes[:, 2:] = np.abs(boxes[:, 2:])
        image = dataset.image_of_row[chosen]
        table = DetectionTable(image, random.integers(0, classes, 2000), boxes, random.random(2000))
        assert detection_findings(dataset, table) == []
    assert detection_findings(dataset, DetectionTable.empty()) == []
