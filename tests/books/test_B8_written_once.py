"""B8: what a run was begun and measured with is never rewritten, whichever command reads the run later."""

import hashlib
import importlib
import shutil
import sys
from pathlib import Path

import pytest

from runyard import cli
from runyard.driver.run import run_one
from runyard.runs.folder import RunFolder
from runyard.scoring.results import TrialResult

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
NEW = ("evaluation/", "candidates-", "oracle/")
"""Where another scoring may add files of its own."""


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its path in the folder; locks, which name their holder, are left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture
def run(finished: TrialResult, tmp_path: Path) -> RunFolder:
    storage = shutil.copytree(finished.run.root.parent, tmp_path / "runs")
    return RunFolder(storage / finished.run.root.name)


def test_B8_a_finished_run_that_is_started_again_is_unchanged(
    finished: TrialResult, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(finished.run.root)
    assert {"spec.json", "manifest.json", "attempts.jsonl", "journal.jsonl"} <= set(before)
    monkeypatch.setattr(sys, "argv", ["another", "command"])
    run_one(finished.spec, "tiny", launcher="local")
    assert "finished before; nothing to do" in capsys.readouterr().out
    assert hashes(finished.run.root) == before


def test_B8_scoring_an_existing_run_adds_files_and_changes_none(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hashes(run.root)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    ablate_alpha = importlib.import_module("ablate_alpha")
    arguments = ["--checkpoint-run", str(run.root), "--rows", "none", "0.3", "--launcher", "local"]
    monkeypatch.setattr(sys, "argv", ["ablate_alpha.py", *arguments])
    ablate_alpha.run()
    after = hashes(run.root)
    assert before.items() <= after.items()
    added = set(after) - set(before)
    assert sum(name.endswith("/metrics.json") for name in added) >= 2
    assert all(name.startswith(NEW) for name in added)


def test_B8_detections_and_tables_change_nothing(
    finished: TrialResult, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(finished.run.root)
    annotations = tiny_data / "annotations" / "instances_val.json"
    arguments = ["--annotations", str(annotations), "--images", str(tiny_data / "val")]
    assert cli.main(["detect", str(finished.run.root), *arguments, "--out", str(tmp_path / "found.json")]) == 0
    (sweep,) = (path.parent for path in finished.run.root.parent.glob("sweeps/*/trials.json"))
    assert cli.main(["table", str(sweep)]) == 0
    assert hashes(finished.run.root) == before
