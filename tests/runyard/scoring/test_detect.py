"""A finished run's detections as a plain result file."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import ScoringConfig
from runyard import cli
from runyard.driver.run import run_one
from runyard.spec import ExperimentSpec


@pytest.fixture(scope="module")
def run(make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = make_tiny_spec(tmp_path_factory.mktemp("runs"))
    spec = replace(
        spec, optim=replace(spec.optim, epochs=1, milestones=()), scoring=ScoringConfig(score_threshold=0.001)
    )
    return run_one(spec, launcher="local").run.root


@pytest.fixture
def image_info(tiny_data: Path, tmp_path: Path) -> Path:
    """As COCO gives out its test images: no annotations; other ids, so that nothing is taken for granted."""
    content = json.loads((tiny_data / "annotations" / "instances_val.json").read_text())
    del content["annotations"]
    for category in content["categories"]:
        category["id"] += 100
    path = tmp_path / "image_info_test.json"
    path.write_text(json.dumps(content))
    return path


def detect(run: Path, image_info: Path, tiny_data: Path, out: Path, *options: str) -> int:
    arguments = ["--annotations", str(image_info), "--images", str(tiny_data / "val"), "--out", str(out)]
    return cli.main(["detect", str(run), *arguments, *options])


def test_detections_are_those_of_the_evaluation(
    run: Path, image_info: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "detections.json"
    assert detect(run, image_info, tiny_data, out) == 0
    found = json.loads(out.read_text())
    assert f"{len(found):,} detections in 5 images" in capsys.readouterr().out
    assert {tuple(row) for row in found} == {("image_id", "category_id", "bbox", "score")}
    (evaluated,) = (json.loads(path.read_text()) for path in run.glob("evaluation/*/detections.json"))
    assert len(found) == len(evaluated) > 0
    for ours, theirs in zip(found, evaluated, strict=True):
        assert ours["category_id"] == theirs["category_id"] + 100
        assert ours["image_id"] == theirs["image_id"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)


def test_another_alpha(run: Path, image_info: Path, tiny_data: Path, tmp_path: Path) -> None:
    scores = []
    for alpha in ("1.0", "0.5"):
        assert detect(run, image_info, tiny_data, tmp_path / alpha, "--alpha", alpha) == 0
        scores.append(sorted(row["score"] for row in json.loads((tmp_path / alpha).read_text())))
    assert scores[0] != scores[1]


@pytest.mark.parametrize("mistake", ["run", "alpha", "classes", "images"])
def test_mistakes_are_one_message(
    run: Path, image_info: Path, tiny_data: Path, tmp_path: Path, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(image_info.read_text())
    if mistake == "classes":
        content["categories"] = content["categories"][1:]
    if mistake == "images":
        content["images"][0]["file_name"] = "gone.png"
    image_info.write_text(json.dumps(content))
    folder = tmp_path if mistake == "run" else run
    options = ("--alpha", "1.5") if mistake == "alpha" else ()
    out = tmp_path / "detections.json"
    assert detect(folder, image_info, tiny_data, out, *options) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert not out.exists()
