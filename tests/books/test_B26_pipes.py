"""B26: a pipe or device named as annotations or detections is refused in one sentence, and is not waited for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRUTH = {
    "images": [{"id": 1, "width": 100, "height": 100}],
    "categories": [{"id": 1, "name": "fish"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}],
}
FOUND = [{"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9}]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    return {"--annotations": str(tmp_path / "truth.json"), "--detections": str(tmp_path / "found.json")}


def evaluate(files: dict[str, str], *options: str, keep: tuple[int, ...] = ()) -> str:
    """Standard error of a `runyard evaluate` that refuses its input."""
    arguments = [text for item in files.items() for text in item]
    command = [sys.executable, "-m", "runyard.cli", "evaluate", *arguments, *options]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, pass_fds=keep)
    assert shown.returncode == 2, shown.stdout
    return shown.stderr


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--annotations", "pipe.json"),
        ("--annotations", "pipe.npz"),
        ("--annotations", "data.yaml"),
        ("--detections", "pipe.json"),
    ],
)
def test_B26_a_pipe_without_a_writer_is_refused_at_once(
    files: dict[str, str], tmp_path: Path, option: str, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    split = ("--split", "val") if name == "data.yaml" else ()
    error = evaluate(files | {option: str(tmp_path / name)}, *split)
    assert str(tmp_path / name) in error
    if name != "data.yaml":
        assert "expected a regular file, found a pipe" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("option", ["--annotations", "--detections"])
def test_B26_a_pipe_with_a_writer_is_refused_for_it_can_be_read_only_once(files: dict[str, str], option: str) -> None:
    """As the shell's <(...) gives it: the report's digest would be that of the exhausted pipe."""
    reader, writer = os.pipe()
    os.write(writer, Path(files[option]).read_bytes())
    os.close(writer)
    try:
        error = evaluate(files | {option: f"/dev/fd/{reader}"}, keep=(reader,))
    finally:
        os.close(reader)
    assert "expected a regular file, found a pipe" in error


def test_B26_a_device_is_refused(files: dict[str, str]) -> None:
    assert "expected a regular file, found a device" in evaluate(files | {"--detections": "/dev/null"})
