"""The command lines as a user meets them: help, one-line errors, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}", "COLUMNS": "100"}

pytestmark = pytest.mark.processes


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd or ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def coco_main(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run(str(ROOT / "experiments" / "coco_main.py"), *arguments, cwd=cwd)


def test_help_of_every_command_names_its_options() -> None:
    shown = run("-m", "runyard.cli", "--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("evaluate", "doctor", "sync", "ui"))
    shown = coco_main("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("--smoke", "--dry-run", "--workers", "--storage", "--gpus-per-worker"))


def test_dry_run_prints_a_spec_that_reads_back_and_starts_nothing(tmp_path: Path) -> None:
    shown = coco_main("--dry-run", "--row", "r101-baseline", "--optim.epochs", "3", "--workers", "2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    plan = json.loads(shown.stdout)
    (training,) = plan["each_training"]
    assert training["spec"]["model"]["backbone"]["name"] == "resnet101"
    assert training["spec"]["model"]["iou_head"] is False
    assert training["spec"]["optim"]["epochs"] == 3
    assert (training["workers"], training["learning_rate"]) == (2, pytest.approx(0.005))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "error: source.data: no data set was named. Give its folder with --data"),
        (("--data", "nowhere"), "no such folder"),
        (("--optim.epochs", "0"), "optim.epochs: expected at least 1"),
        (("--optim.epoch", "3"), "--optim.epoch"),
        (("--row", "r7"), "rows: unknown row"),
        (("--smoke", "--workers", "0"), "runtime.workers: expected at least 1"),
    ],
)
def test_a_mistake_is_one_message_and_writes_nothing(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    shown = coco_main(*arguments, cwd=tmp_path)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unreachable_storage_is_one_message(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    shown = coco_main("--smoke", "--launcher", "local", "--storage", str(blocked / "runs"), cwd=tmp_path)
    assert shown.returncode == 2
    assert str(blocked) in shown.stderr
    assert "Traceback" not in shown.stderr


def test_evaluate_scores_a_file(tmp_path: Path) -> None:
    annotations = {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 100}],
        "categories": [{"id": 0, "name": "fish"}],
        "annotations": [
            {"id": 0, "image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        ],
    }
    detections = [{"image_id": 0, "category_id": 0, "bbox": [10, 10, 20, 20], "score": 0.9}]
    (tmp_path / "gt.json").write_text(json.dumps(annotations))
    (tmp_path / "dt.json").write_text(json.dumps(detections))
    for protocol in ("coco", "voc07", "voc12"):
        shown = run(
            "-m", "runyard.cli", "evaluate", "--annotations", str(tmp_path / "gt.json"),
            "--detections", str(tmp_path / "dt.json"), "--protocol", protocol, "--json", str(tmp_path / "out.json"),
            *([] if protocol == "coco" else ["--offset", "1"]),
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["metrics"]["AP"] == pytest.approx(1.0)


def test_evaluate_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    shown = run("-m", "runyard.cli", "evaluate", "--annotations", "gt.json", "--detections", "dt.json", cwd=tmp_path)
    assert shown.returncode == 2
    assert "gt.json" in shown.stderr
    assert "Traceback" not in shown.stderr
