"""`runyard detect` checks its output before it starts, and overwrites nothing but result files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import ScoringConfig
from runyard import cli
from runyard.driver.run import run_one
from runyard.scoring import detect as module
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


def test_B24_an_earlier_result_file_and_an_empty_one_are_replaced(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    for content in ("", '[{"image_id": 1}]\n'):
        out.write_text(content)
        assert detect(run, data, out) == 0
        assert len(json.loads(out.read_text())) > 1
