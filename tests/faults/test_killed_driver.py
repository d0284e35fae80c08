"""The driver of a run is killed with SIGKILL: the same command goes on, in the same tracked run, and ends it."""

import sqlite3
from pathlib import Path

import pytest

from runyard.experiment import run_experiment
from runyard.layout import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal, effective_metrics, last_status

pytestmark = pytest.mark.slow

MAIN = Path(__file__).resolve().parents[2] / "experiments" / "coco_main.py"


def tracked_runs(storage: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(storage / "mlflow.db") as database:
        return database.execute("SELECT name, status FROM runs").fetchall()


def test_a_driver_killed_while_training_is_followed_by_another(
    runs, wait_until, last_step, events, tmp_path: Path
) -> None:
    command = [MAIN, "--smoke", "--launcher", "local", "--storage", tmp_path, "--name", "run"]
    folder = RunFolder(tmp_path / "run")
    process = runs.command(command)
    wait_until(lambda: last_step(folder) >= 5 or process.poll() is not None)
    process.kill()
    process.communicate()
    assert last_status(folder.journal) == "RUNNING"
    again = runs.command(command)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert [event.payload["start_step"] for event in events(folder, "start")] == [0, 4]
    assert [step for step, _ in effective_metrics(folder.journal)["train/loss"]] == list(range(1, 9))
    assert last_status(folder.journal) == "FINISHED"
    assert tracked_runs(tmp_path) == [("run", "FINISHED")]


def test_a_driver_killed_after_the_evaluation_is_followed_by_one_that_reports(tiny_spec: ExperimentSpec) -> None:
    first = run_experiment(tiny_spec, launcher="local")
    assert tiny_spec.runtime.storage is not None
    # What a driver leaves that was killed before its last record.
    with Journal(first.folder.journal) as journal:
        journal.append("status", {"status": "RUNNING", "message": ""})
    plot = first.folder.plots / "training.png"
    plot.unlink()
    again = run_experiment(tiny_spec, launcher="local")
    assert plot.exists()
    assert last_status(again.folder.journal) == "FINISHED"
    assert tracked_runs(tiny_spec.runtime.storage) == [("tiny", "FINISHED")]
    assert again.metrics["val/AP"] == pytest.approx(first.metrics["val/AP"], abs=0)
