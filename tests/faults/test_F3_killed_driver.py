"""F3: SIGKILL to the driver of a run or of a sweep, or to a trial's process: the same command goes on and ends it."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from runyard.driver.run import run_one
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal, effective_metrics, last_status, read

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
MAIN = EXPERIMENTS / "coco_main.py"


def tracked_runs(storage: Path) -> dict[str, str]:
    """Status of each tracked run by name: a sweep's and its trial's, which are two."""
    with sqlite3.connect(storage / "mlflow.db") as database:
        found = database.execute("SELECT name, status FROM runs").fetchall()
    assert len(found) == 2
    return dict(found)


def test_F3_a_driver_killed_while_training_is_followed_by_another(
    runs, wait_until, last_step, only_run, events, storage: Path
) -> None:
    command = [MAIN, "--smoke", "--launcher", "local", "--storage", storage, "--name", "run"]
    process = runs.fresh_command(command)
    wait_until(lambda: last_step(only_run(storage)) >= 5 or process.poll() is not None)
    process.kill()
    process.communicate()
    folder = only_run(storage)
    assert last_status(folder.journal) == "RUNNING"
    again = runs.command(command)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert [event.payload["start_step"] for event in events(folder, "start")] == [0, 4]
    assert [step for step, _ in effective_metrics(folder.journal)["train/loss"]] == list(range(1, 9))
    assert last_status(folder.journal) == "FINISHED"
    assert tracked_runs(storage) == {"run-smoke-shapes": "FINISHED", "r50-iou": "FINISHED"}


def test_F3_a_driver_killed_after_the_evaluation_is_followed_by_one_that_reports(tiny_spec: ExperimentSpec) -> None:
    first = run_one(tiny_spec, launcher="local")
    assert tiny_spec.runtime.storage is not None
    # What a driver leaves that was killed before its last record.
    with Journal(first.run.journal) as journal:
        journal.append("status", {"status": "RUNNING", "message": ""})
    plot = first.run.plots / "training.png"
    plot.unlink()
    again = run_one(tiny_spec, launcher="local")
    assert plot.exists()
    assert last_status(again.run.journal) == "FINISHED"
    assert tracked_runs(tiny_spec.runtime.storage) == {"tiny-shapes": "FINISHED", "tiny": "FINISHED"}
    assert again.metrics["val/AP"] == pytest.approx(first.metrics["val/AP"], abs=0)


def smoke_command(storage: Path, seeds: int) -> list[str]:
    script = EXPERIMENTS / "ablate_iou_loss.py"
    rows = ["--rows", "baseline", "bce", "--seeds", str(seeds)]
    return [sys.executable, str(script), "--smoke", *rows, "--storage", str(storage), "--optim.epochs", "6"]


def started(folder: RunFolder) -> int:
    """Number of attempts at a run."""
    return sum(record.kind == "event" and record.payload["event"] == "start" for record in read(folder.journal))


def run_folders(storage: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in storage.glob("smoke-ablation-*")]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_F3_a_killed_driver_leaves_six_runs_of_which_the_same_command_finishes_the_rest(tmp_path: Path) -> None:
    driver = subprocess.Popen(smoke_command(tmp_path, seeds=3), cwd=tmp_path)
    deadline_s = time.monotonic() + 500
    while time.monotonic() < deadline_s and driver.poll() is None:
        folders = run_folders(tmp_path)
        finished = [folder for folder in folders if folder.evaluations()]
        if len(finished) >= 2 and any(folder.checkpoints() for folder in folders if not folder.evaluations()):
            break
        time.sleep(0.2)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    finished = [folder for folder in run_folders(tmp_path) if last_status(folder.journal) == "FINISHED"]
    interrupted = [folder for folder in run_folders(tmp_path) if last_status(folder.journal) == "RUNNING"]
    assert len(finished) >= 1
    assert interrupted
    before = {folder.root: folder.evaluations()[0].metrics.stat().st_mtime_ns for folder in finished}

    began_s = time.monotonic()
    assert subprocess.run(smoke_command(tmp_path, seeds=3), cwd=tmp_path).returncode == 0
    print(f"continued in {time.monotonic() - began_s:.0f} s, {len(finished)} of 6 finished before")
    folders = run_folders(tmp_path)
    assert len(folders) == 6
    assert all(len(folder.evaluations()) == 1 for folder in folders)
    assert {folder.root: folder.evaluations()[0].metrics.stat().st_mtime_ns for folder in finished} == before
    assert all(started(folder) == 1 for folder in finished)
    assert tracked_statuses(tmp_path) == Counter({"FINISHED": 7})
    resumed = [folder for folder in interrupted if last_start(folder) > 0]
    assert resumed, "an interrupted training goes on from its last checkpoint"

    before = {folder.root: started(folder) for folder in folders}
    assert subprocess.run(smoke_command(tmp_path, seeds=4), cwd=tmp_path).returncode == 0
    assert len(run_folders(tmp_path)) == 8
    assert {folder.root: started(folder) for folder in folders} == before
    assert tracked_statuses(tmp_path) == Counter({"FINISHED": 9})


def last_start(folder: RunFolder) -> int:
    starts = [r.payload["start_step"] for r in read(folder.journal) if r.payload.get("event") == "start"]
    return int(starts[-1])


def tracked_statuses(storage: Path) -> Counter[str]:
    """Statuses of the sweep's run and of its children, with their counts; the names must differ."""
    client = MlflowClient(f"sqlite:///{storage}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("runyard").experiment_id])
    assert max(Counter(run.data.tags.get("trial") for run in runs).values()) == 1
    return Counter(run.info.status for run in runs)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_F3_a_killed_trial_gives_its_places_back(tmp_path: Path) -> None:
    driver = subprocess.Popen(
        [
            sys.executable,
            str(EXPERIMENTS / "ablate_iou_loss.py"),
            "--smoke",
            "--rows",
            "baseline",
            "bce",
            "--workers",
            "2",
            "--storage",
            str(tmp_path),
            "--optim.epochs",
            "12",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 200
    while time.monotonic() < deadline_s and not any(folder.checkpoints() for folder in run_folders(tmp_path)):
        time.sleep(0.2)
    (trial,) = processes_below(driver.pid, "ray::ImplicitFunc")
    os.kill(trial, signal.SIGKILL)
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 1
    assert "1 of 2 trials failed" in errors
    assert Counter(last_status(folder.journal) for folder in run_folders(tmp_path)) == {"FAILED": 1, "FINISHED": 1}


def processes_below(pid: int, name: str) -> list[int]:
    """Children, and theirs, whose command begins with a name."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found: list[int] = []
    family = {pid}
    for line in sorted(listed.splitlines(), key=lambda line: int(line.split()[0])):
        child, parent, command = line.split(maxsplit=2)
        if int(parent) in family:
            family.add(int(child))
            found += [int(child)] * command.startswith(name)
    return found
