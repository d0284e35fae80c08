"""B24: outputs are checked before any work; nothing is overwritten but earlier results of the same kind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from detector.config import ScoringConfig
from detector.data.samples import Dataset
from detector.errors import InputError
from detector.evaluation.results import DetectionTable, write_coco_results
from runyard import cli
from runyard.driver.run import run_one
from runyard.scoring import detect as module
from runyard.scoring.evaluate import evaluate_files
from runyard.scoring.outputs import RESULT_FILE, check_output
from runyard.spec import ExperimentSpec


@pytest.fixture(scope="module")
def run(make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = make_tiny_spec(tmp_path_factory.mktemp("runs"))
    optim = replace(spec.optim, epochs=1, milestones=())
    spec = replace(spec, optim=optim, scoring=ScoringConfig(score_threshold=0.001))
    return run_one(spec, launcher="local").run.root


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy of the images and annotations that a failing test may destroy."""
    shutil.copytree(tiny_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def no_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: object, **options: object) -> None:
        raise AssertionError("inference was started")

    monkeypatch.setattr(module, "detect", started)


def detect(run: Path, data: Path, out: Path, *options: str) -> int:
    annotations = data / "annotations" / "instances_val.json"
    paths = ["--annotations", str(annotations), "--images", str(data / "val"), "--out", str(out)]
    return cli.main(["detect", str(run), *paths, *options])


@pytest.mark.usefixtures("no_inference")
@pytest.mark.parametrize("place", ["annotations", "link", "image", "spec", "folder", "below a file"])
def test_B24_an_output_is_never_an_input(
    run: Path, data: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = data / "annotations" / "instances_val.json"
    (tmp_path / "link.json").symlink_to(annotations)
    out = {
        "annotations": annotations,
        "link": tmp_path / "link.json",
        "image": min((data / "val").iterdir()),
        "spec": run / "spec.json",
        "folder": tmp_path,
        "below a file": annotations / "out.json",
    }[place]
    before = {path: path.read_bytes() for path in (*data.rglob("*.*"), run / "spec.json") if path.is_file()}
    assert detect(run, data, out) == 2
    assert "--out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_B24_an_earlier_result_file_is_replaced(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    out.write_text("[]\n")  # of images without detections
    for _ in range(2):
        assert detect(run, data, out) == 0
        assert len(json.loads(out.read_text())) > 1


ROW = '{"image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5'


@pytest.mark.usefixtures("no_inference")
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        "[1, 2]\n",
        '[{"image_id": 1}]\n',
        f'[{ROW}, "class_score": 0.5, "iou": 0.5}}]\n',
        f"[{ROW}}}]",
        f"[{ROW}}}, {ROW}",
        "[[section]]\nname = 1\n",
    ],
    ids=["empty", "bracket", "numbers", "other rows", "rows of an evaluation", "no newline", "cut off", "toml"],
)
def test_B24_a_file_that_detect_did_not_write_is_not_replaced(
    run: Path, data: Path, tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    out.write_text(content)
    assert detect(run, data, out) == 2
    assert "--out: expected a new file or an earlier result file of Runyard" in capsys.readouterr().err
    assert out.read_text() == content


def test_B24_string_ids_and_exponents_are_recognised(tmp_path: Path) -> None:
    table = DetectionTable(
        image_index=np.array([0]),
        labels=np.array([0]),
        boxes_xywh=np.array([[-1.5, 1e-7, 1e20, 3.0]]),
        scores=np.array([1e-9]),
    )
    categories = (SimpleNamespace(id=1),)
    dataset = cast("Dataset", SimpleNamespace(image_ids=('2007_"x"',), categories=categories))
    write_coco_results(table, dataset, tmp_path / "found.json")
    assert check_output(tmp_path / "found.json", "--out", RESULT_FILE) == tmp_path / "found.json"


TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "fish"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
}


@pytest.mark.parametrize("content", ["", "{}\n", "notes", '{\n  "protocol": "coco"\n}\n', "[]\n"])
def test_B24_a_file_that_evaluate_did_not_write_is_not_replaced(tmp_path: Path, content: str) -> None:
    truth, found, out = tmp_path / "truth.json", tmp_path / "found.json", tmp_path / "out.json"
    truth.write_text(json.dumps(TRUTH))
    found.write_text("[]")
    out.write_text(content)
    with pytest.raises(InputError, match="--json: expected a new file or an earlier report of Runyard"):
        evaluate_files(truth, found, json_out=out)
    assert out.read_text() == content
    out.unlink()
    for _ in range(2):
        evaluate_files(truth, found, json_out=out)


def test_B24_the_files_in_a_folder_of_annotations_are_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations"
    folder.mkdir(parents=True)
    (folder / "000001.xml").write_text("<annotation/>")
    (tmp_path / "found.json").write_text("[]")
    with pytest.raises(InputError, match="--json: expected a new file"):
        evaluate_files(
            tmp_path / "VOCdevkit", tmp_path / "found.json", split="2007:test", json_out=folder / "000001.xml"
        )
    assert (folder / "000001.xml").read_text() == "<annotation/>"
