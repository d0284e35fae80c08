import copy
import hashlib
import json

import pytest

from detector.errors import ConfigError, InputError, ResultFileError
from detector.evaluation import metrics
from detector.evaluation.results import read_coco_results
from runyard.scoring.evaluate import evaluate_files
from runyard.scoring.evaluation_text import render_report
from runyard.scoring.ground_truth import read_ground_truth
from tests.yolo_copies import copy_as_yolo

TRUTH = {
    "images": [{"id": 0, "width": 100, "height": 100}, {"id": 5, "width": 100, "height": 100}],
    "categories": [
        {"id": 0, "name": "fish", "supercategory": "none"},
        {"id": 3, "name": "shark", "supercategory": "fish"},
        {"id": 9, "name": "shark", "supercategory": "fish"},
    ],
    "annotations": [
        {"id": 0, "image_id": 0, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 1, "image_id": 5, "category_id": 3, "bbox": [20, 20, 40, 40]},
    ],
}
FOUND = [
    {"image_id": 0, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.9, "class_score": 0.95, "iou": 0.8},
    {"image_id": 0, "category_id": 3, "bbox": [60, 60, 9, 9], "score": 0.8, "class_score": 0.9, "iou": 0.1},
    {"image_id": 5, "category_id": 3, "bbox": [20, 20, 40, 40], "score": 0.7, "class_score": 0.6, "iou": 0.9},
    {"image_id": 5, "category_id": 0, "bbox": [20, 20, 40, 40], "score": 0.7},
]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.fixture
def files(write):
    return write("truth.json", TRUTH), write("found.json", FOUND)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_coco(files, tmp_path, backend):
    out = tmp_path / "new" / "report.json"
    report = evaluate_files(*files, backend=backend, json_out=out)
    assert report["metrics"]["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert report["metrics"]["APL"] is None
    assert [(row["id"], row["name"]) for row in report["per_class"]] == [(0, "fish"), (3, "shark"), (9, "shark")]
    assert report["per_class"][0]["AP"] is None
    assert report["per_class"][1]["AP"] == pytest.approx(report["metrics"]["AP"])
    assert (report["images"], report["ground_truth"], report["detections"]) == (2, 2, 4)
    assert report["inputs"]["detections"]["sha256"] == hashlib.sha256(files[1].read_bytes()).hexdigest()
    assert report["versions"]["hotcoco"]
    assert json.loads(out.read_text()) == report
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["report.json"]


@pytest.mark.parametrize(("protocol", "expected"), [("voc07", (6 + 5 * 2 / 3) / 11), ("voc12", 0.5 + 0.5 * 2 / 3)])
def test_voc(files, protocol, expected):
    report = evaluate_files(*files, protocol=protocol, offset=None if protocol == "coco" else 1.0)
    assert report["metrics"]["AP50"] == pytest.approx(expected)
    assert list(report["metrics"]) == ["AP", *(f"AP{percent}" for percent in range(50, 100, 5))]
    assert report["settings"] == {"points": "11" if protocol == "voc07" else "area", "offset": 1.0}
    assert [row["AP50"] for row in report["per_class"]] == [None, pytest.approx(expected), None]


def test_the_offset_is_used(write):
    truth = write("t.json", TRUTH)
    found = write("d.json", [FOUND[2] | {"bbox": [20, 20, 40, 19.5]}])
    # 40 x 19.5 in 40 x 40 is below a half; one pixel more on every side makes it a half.
    assert evaluate_files(truth, found, protocol="voc12", offset=0.0)["metrics"]["AP50"] == 0.0
    assert evaluate_files(truth, found, protocol="voc12", offset=1.0)["metrics"]["AP50"] == 0.5


def test_correlation_of_the_score_always_and_of_its_factors_where_rows_have_them(files, write):
    report = evaluate_files(*files)["correlation_with_true_iou"]
    assert {name: values["n"] for name, values in report.items()} == {"score": 4, "class_score": 3, "iou": 3}
    assert report["iou"]["pearson"] > 0.9 > report["class_score"]["pearson"]
    plain = [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in FOUND]
    assert list(evaluate_files(files[0], write("plain.json", plain))["correlation_with_true_iou"]) == ["score"]


def test_no_detections(files, write):
    report = evaluate_files(files[0], write("none.json", []))
    assert report["metrics"]["AP"] == 0.0
    assert report["correlation_with_true_iou"] == {"score": {"pearson": None, "spearman": None, "n": 0}}
    assert "n/a" in render_report(report)


def test_no_ground_truth(files, write):
    truth = write("empty.json", TRUTH | {"annotations": []})
    for protocol in ("coco", "voc07", "voc12"):
        report = evaluate_files(truth, files[1], protocol=protocol, offset=None if protocol == "coco" else 1.0)
        assert set(report["metrics"].values()) == {None}
        render_report(report)


def test_the_tables_hold_every_number(files):
    for protocol in ("coco", "voc07"):
        report = evaluate_files(*files, protocol=protocol, offset=None if protocol == "coco" else 1.0)
        text = render_report(report)
        for value in (*report["metrics"].values(), *(row["AP"] for row in report["per_class"])):
            assert ("n/a" if value is None else f"{100 * value:.2f}") in text
        assert protocol in text
        assert "shark" in text
        assert max(map(len, text.splitlines())) <= 120


def test_class_names_are_printed_as_they_stand(write):
    truth = copy.deepcopy(TRUTH)
    truth["categories"][1]["name"] = "[red]a[/red]\x1b[31mb\nc"
    text = render_report(evaluate_files(write("t.json", truth), write("d.json", FOUND)))
    assert "[red]a[/red]\ufffd[31mb\ufffdc" in text
    assert "\x1b" not in text


def test_names_that_are_no_text_are_reported_and_printed(write, tmp_path):
    truth = copy.deepcopy(TRUTH)
    truth["categories"][0]["name"] = "fish \ud800"
    files = write("t\udcff.json", truth), write("d.json", FOUND)
    report = evaluate_files(*files, json_out=tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["per_class"][0]["name"] == "fish \ud800"
    render_report(report).encode("utf-8")


def test_hopeless_files_are_refused_with_one_line(files, write, tmp_path):
    truth, found = files
    bad = [
        (tmp_path / "absent.json", found, "absent.json"),
        (truth, tmp_path / "absent.json", "absent.json"),
        (tmp_path, found, tmp_path.name),
        (write("cut.json", json.dumps(TRUTH)[:100]), found, "cut.json"),
        (truth, write("cut2.json", json.dumps(FOUND)[:100]), "cut2.json"),
        (truth, truth, "not a list"),
        (found, found, "found.json"),
        (truth, write("other.json", [FOUND[0] | {"image_id": 77}]), "image_id 77"),
    ]
    for annotations, detections, said in bad:
        with pytest.raises(InputError, match=said) as caught:
            evaluate_files(annotations, detections, json_out=tmp_path / "report.json")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "report.json").exists()


def test_an_input_is_never_overwritten(files, tmp_path):
    for out in (*files, tmp_path):
        before = [path.read_bytes() for path in files]
        with pytest.raises(InputError, match=out.name):
            evaluate_files(*files, json_out=out)
        assert [path.read_bytes() for path in files] == before


def test_an_unwritable_report_is_an_input_error(files):
    with pytest.raises(InputError, match="cannot be written"):
        evaluate_files(*files, json_out=files[0] / "below_a_file" / "report.json")


@pytest.mark.parametrize("setting", [{"protocol": "voc"}, {"backend": "numpy"}, {"offset": 0.5}, {"max_detections": 0}])
def test_unknown_settings_are_refused(files, setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        evaluate_files(*files, **setting)


def test_a_nan_score_is_a_result_file_error(files, write):
    with pytest.raises(ResultFileError, match="score nan"):
        evaluate_files(files[0], write("nan.json", [FOUND[0] | {"score": float("nan")}]))


def test_a_new_metric_is_a_line_in_the_list_and_shows_everywhere(files, monkeypatch):
    def mean_score(dataset, table, settings):
        return metrics.Scores({"mean_score": float(table.scores.mean())})

    monkeypatch.setattr(metrics, "EVALUATORS", (*metrics.EVALUATORS, metrics.Evaluator("ranking", mean_score)))
    report = evaluate_files(*files)
    assert report["further_metrics"] == {"ranking": {"mean_score": pytest.approx(0.775)}}
    assert "0.775" in render_report(report)
    dataset = read_ground_truth(files[0], None, None, honours_ignore_marks=False).dataset
    tracked = metrics.score_detections(dataset, read_coco_results(files[1], dataset), "coco")
    assert tracked["val/mean_score"] == pytest.approx(0.775)


def test_a_folder_of_any_format_is_ground_truth(tmp_path, tiny_data):
    yolo = copy_as_yolo(tiny_data, tmp_path / "yolo")
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    rows = [
        {key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
        for row in content["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    report = evaluate_files(tiny_data, tmp_path / "found.json", split="val")
    assert report["metrics"]["AP"] == pytest.approx(1.0)
    assert report["inputs"]["annotations"]["split"] == "val"
    with pytest.raises(ConfigError, match="offset: needed"):
        evaluate_files(tiny_data, tmp_path / "found.json", split="val", protocol="voc12")
    for row in rows:
        row["image_id"] = f"images/val/{row['image_id']:06d}.jpg"
        row["category_id"] -= 1
    (tmp_path / "found.json").write_text(json.dumps(rows))
    for place in (yolo, yolo / "data.yaml"):
        report = evaluate_files(place, tmp_path / "found.json", split="val", protocol="voc12")
        assert report["metrics"]["AP"] == pytest.approx(1.0)
        assert report["settings"]["offset"] == 0.0
