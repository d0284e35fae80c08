"""B32: `runyard evaluate --json` replaces nothing special, and is checked before any work is done."""

import json
import os
from pathlib import Path

import pytest

from detector.errors import InputError
from runyard.scoring import evaluate
from runyard.scoring.evaluate import evaluate_files
from runyard.scoring.outputs import RESULT_FILE, check_output

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "fish"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
}
FOUND = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    truth.write_text(json.dumps(TRUTH))
    found.write_text(json.dumps(FOUND))
    return truth, found


def test_B32_a_link_is_written_through(files: tuple[Path, Path], tmp_path: Path) -> None:
    target, link = tmp_path / "real" / "report.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to(target)
    evaluate_files(*files, json_out=link)
    assert target.exists()
    evaluate_files(*files, protocol="voc07", offset=0, json_out=link)
    assert link.is_symlink()
    assert json.loads(target.read_text())["protocol"] == "voc07"


@pytest.mark.parametrize("kind", ["pipe", "device", "link to an input", "hard link to an input", "no permission"])
def test_B32_what_must_not_be_written_is_refused_before_the_work(
    files: tuple[Path, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "device":
        out = Path("/dev/null")
    elif kind == "link to an input":
        out.symlink_to(files[1])
    elif kind == "hard link to an input":
        os.link(files[0], out)
    else:
        out = files[0] / "below" / "out.json"
    before = [file.read_bytes() for file in files]
    monkeypatch.setattr(evaluate, "read_ground_truth", lambda *_, **__: pytest.fail("began to work"))
    with pytest.raises(InputError, match=r"^\S*: --json: (is an input|cannot be written|expected a regular file)"):
        evaluate_files(*files, json_out=out)
    assert [file.read_bytes() for file in files] == before
    assert Path("/dev/null").is_char_device()


def test_B32_the_home_folder_is_expanded_for_the_check_and_the_write(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One path for both: `detect --out=~/out.json` was checked in the home folder and written into a folder '~'."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert check_output(Path("~/out.json"), "--out", RESULT_FILE) == home / "out.json"
    evaluate_files(*files, json_out=Path("~/out.json"))
    assert list(here.iterdir()) == []
    assert json.loads((home / "out.json").read_text())["protocol"] == "coco"
    with pytest.raises(InputError, match="--json: cannot be written"):
        evaluate_files(*files, json_out=Path("~no-such-user/out.json"))
